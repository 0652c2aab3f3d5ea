"""ollama for Python: embeddings of a real model."""

from __future__ import annotations

import ollama
from checks import EMBEDDER, main, raises, url

client = ollama.Client(url())
LONG = "word " * 600


def check_texts_have_embeddings() -> None:
    made = client.embed(EMBEDDER, ["The ferry leaves at six.", "Bread is old."])
    assert len(made.embeddings) == 2
    assert len(made.embeddings[0]) == 384
    assert made.prompt_eval_count
    assert made.total_duration
    one = client.embed(f"{EMBEDDER}:latest", "Bread is old.")
    assert list(one.embeddings[0]) == list(made.embeddings[1])


def check_the_older_call_gives_the_same() -> None:
    old = client.embeddings(EMBEDDER, "Bread is old.")
    assert list(old.embedding) == list(client.embed(EMBEDDER, "Bread is old.").embeddings[0])


def check_a_text_is_cut_only_where_that_is_asked_for() -> None:
    assert len(client.embed(EMBEDDER, LONG, truncate=True).embeddings[0]) == 384
    error = raises(ollama.ResponseError, lambda: client.embed(EMBEDDER, LONG))
    assert error.status_code == 400
    assert "602 tokens" in error.error, error


def check_what_it_can_do_is_shown() -> None:
    assert client.show(EMBEDDER).capabilities == ["embedding"]


if __name__ == "__main__":
    main()
