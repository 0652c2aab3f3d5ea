"""Approximate reuse over HTTP: for requests that ask for it, of a server that allows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live import LiveServer

DOCUMENTS = [
    f"Document {name}: "
    + " ".join(f"the {name} number {i} is {i * i};" for i in range(12))
    + "\n\n"
    for name in ("apple", "bridge", "clock")
]
CHAT = {"model": "tiny", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def allowing(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = ("--kv-cache-memory-bytes", "16M", "--served-model-name", "tiny")
    directory = tmp_path_factory.mktemp("allowing")
    with LiveServer(tiny, directory, *flags, "--reuse", "prefix,chunk,edit") as live:
        yield live


def chat(server: LiveServer, order: str, parts: bool = False, **fields: Any) -> dict[str, Any]:
    """The usage of a question about documents in this order."""
    texts = [DOCUMENTS[int(number)] for number in order]
    content: Any = "".join(texts) + "Which?"
    if parts:
        content = [{"type": "text", "text": text} for text in (*texts, "Which?")]
    body = {**CHAT, "messages": [{"role": "user", "content": content}], **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    usage: dict[str, Any] = response.json()["usage"]
    return usage


@pytest.mark.parametrize("parts", [False, True])
def test_documents_of_a_chat_are_reused_in_any_order(allowing: LiveServer, parts: bool) -> None:
    salt = f"chat {parts}"
    asked = {"reuse": "chunk", "recompute_fraction": 0.0, "cache_salt": salt}
    first = chat(allowing, "012", parts, **asked)
    again = chat(allowing, "201", parts, **asked)
    cached = again["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert cached > 0.8 * again["prompt_tokens"]
    exact = chat(allowing, "201", parts, cache_salt=salt)
    assert exact["prompt_tokens_details"]["cached_tokens"] < 0.2 * exact["prompt_tokens"]


def test_prompts_are_cut_at_their_separator(allowing: LiveServer) -> None:
    asked = {"reuse": "chunk", "chunk_separator": "##", "cache_salt": "separator", "max_tokens": 2}
    texts = [document.replace("\n\n", "##") for document in DOCUMENTS]
    allowing.complete(prompt="".join(texts) + "Which?", **asked)
    usage = allowing.complete(prompt="".join(reversed(texts)) + "Which?", **asked)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.7 * usage["prompt_tokens"]


def test_an_edited_prompt_is_computed_where_it_is_new(allowing: LiveServer) -> None:
    text = "".join(DOCUMENTS)
    asked = {"reuse": "edit", "cache_salt": "edit", "max_tokens": 2}
    allowing.complete(prompt=text, **asked)
    usage = allowing.complete(prompt=f"A word. {text}", **asked)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.9 * usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"reuse": "chunks"},
            "no approximate reuse 'chunks'; it has chunk, edit. There are chunk, ",
        ),
        ({"reuse": "edit", "chunk_separator": "x"}, "reuse='edit' takes no chunk_separator"),
        ({"cache_hint": "forever"}, "send 'discard' or 'keep'"),
        ({"reuse": "chunk", "recompute_fraction": 3}, "must lie in [0, 1]"),
        ({"reuse": "chunk", "chunk_separator": ""}, "must not be empty"),
        ({"recompute_fraction": 0.5}, "needs reuse='chunk'"),
        ({"reuse": "chunk", "prompt": [1, 2, 3]}, "send the prompt as text"),
    ],
)
def test_what_cannot_be_reused_is_refused(
    allowing: LiveServer, fields: dict[str, Any], sentence: str
) -> None:
    response = allowing.post("/v1/completions", {"prompt": "a", "max_tokens": 2, **fields})
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


def test_a_server_that_allows_none_says_so(server: LiveServer) -> None:
    response = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "reuse": "chunk"})
    assert response.status_code == 400
    assert "Start it with --reuse prefix,chunk" in response.json()["error"]["message"]
