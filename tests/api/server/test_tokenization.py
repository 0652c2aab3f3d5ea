"""`/tokenize`, `/detokenize`, `/tokenizer_info`, `/version`."""

from __future__ import annotations

import pytest

import ockham


@pytest.mark.parametrize("text", ["", "def f():\n    return 1\n", "naïve 🙂 日本", "<|im_start|>"])
def test_what_is_tokenized_comes_back_as_it_was(server, text):
    tokens = server.post("/tokenize", {"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json()["prompt"] == text


def test_the_answer_names_the_longest_context(server):
    assert server.post("/tokenize", {"prompt": "a"}).json()["max_model_len"] == 8192


def test_tokens_can_be_shown_as_text(server):
    answer = server.post("/tokenize", {"prompt": "def f", "return_token_strs": True}).json()
    assert "".join(answer["token_strs"]) == "def f"


def test_a_long_text_is_tokenized_as_a_short_one_is(server):
    text = "x = [1, 2, 3]\n" * 3000
    answer = server.post("/tokenize", {"prompt": text}).json()
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json()["prompt"] == text


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, {"prompt": 5}, {"x": 1}],
)
def test_tokenize_refuses_what_it_cannot_read(server, body):
    assert server.post("/tokenize", body).status_code == 400


@pytest.mark.parametrize(
    "tokens",
    [[-1], [4096], [2**40], ["a"], None, [5] * 300_000],
    ids=["negative", "beyond", "huge", "text", "null", "long"],
)
def test_detokenize_refuses_what_is_no_token(server, tokens):
    assert server.post("/detokenize", {"tokens": tokens}).status_code == 400


def test_tokenizer_info_names_the_end_of_text(server):
    info = server.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    assert "im_start" in info["chat_template"]


def test_the_version_is_the_packages(server):
    assert server.get("/version").json()["version"] == ockham.__version__
