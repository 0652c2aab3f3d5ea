"""openai for Python: embeddings of a real model."""

from __future__ import annotations

import math

import openai
from checks import EMBEDDER, main, raises, url

client = openai.OpenAI(base_url=f"{url()}/v1", api_key="none", max_retries=0)
SENTENCES = [
    "How do I reset my password?",
    "I forgot my login and cannot sign in.",
    "The ferry leaves at six in the morning.",
]


def likeness(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def check_texts_that_mean_the_same_are_near() -> None:
    made = client.embeddings.create(model=EMBEDDER, input=SENTENCES)
    first, second, other = (each.embedding for each in made.data)
    assert len(first) == 384
    assert math.isclose(likeness(first, first), 1.0, abs_tol=1e-5)
    assert likeness(first, second) > likeness(first, other) + 0.3
    assert made.usage.total_tokens == made.usage.prompt_tokens > 20


def check_base64_and_floats_are_the_same_numbers() -> None:
    packed = client.embeddings.create(model=EMBEDDER, input=SENTENCES[0])
    plain = client.embeddings.create(
        model=EMBEDDER, input=SENTENCES[0], encoding_format="float", user="someone"
    )
    assert packed.data[0].embedding == plain.data[0].embedding


def check_dimensions_keep_the_first_values() -> None:
    whole = client.embeddings.create(model=EMBEDDER, input=SENTENCES[0]).data[0].embedding
    few = client.embeddings.create(model=EMBEDDER, input=SENTENCES[0], dimensions=64)
    length = math.sqrt(likeness(whole[:64], whole[:64]))
    for value, expected in zip(few.data[0].embedding, whole[:64], strict=True):
        assert math.isclose(value, expected / length, abs_tol=1e-6)


def check_a_text_that_is_too_long_is_refused_with_its_length() -> None:
    error = raises(
        openai.BadRequestError,
        lambda: client.embeddings.create(model=EMBEDDER, input=["a", "word " * 600]),
    )
    assert error.code == "context_length_exceeded", error
    assert "input[1]: it has 602 tokens, and the model takes 256" in error.message, error


def check_it_says_that_it_does_not_chat() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    error = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=EMBEDDER, messages=messages),  # type: ignore
    )
    assert "embeds texts" in error.message, error


if __name__ == "__main__":
    main()
