"""The tokenizer of the lab model, as it is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.lab.corpus import chatml
from recipes.lab.tokenizer import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    load_tokenizer,
    train_tokenizer,
)

LAB = Path(__file__).parents[2] / "ockham/model/lab"
TOKENIZER = load_tokenizer(LAB)


def decode(ids: list[int]) -> str:
    text: str = TOKENIZER.decode(ids, skip_special_tokens=False)
    return text


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(LAB)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading, trailing ",
        "def f(x):\n\treturn x  # tab\r\n\n\n    y\n",
        "naïve café, Straße, 日本語, עברית",
        "emoji 😀👩‍👩‍👧🏽 and e\u0301 combining",
        "\x00\x01\x7f\u200b\ufeff\u2028\U0010ffff",
        "1234567890 ²³ ٣٤",
        "<|im_start|>user\nhi<|im_end|>\n<tool_call>",
    ],
)
def test_text_survives_a_round_trip(text: str) -> None:
    assert decode(TOKENIZER.encode(text).ids) == text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert decode(TOKENIZER.encode(text).ids) == text


def test_every_byte_is_a_token() -> None:
    one_byte = [token for token in TOKENIZER.get_vocab() if len(token) == 1]
    assert len(one_byte) == 256


def test_vocabulary_has_exactly_4096_entries() -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(VOCAB_SIZE))


def test_digits_are_split_singly() -> None:
    tokens = TOKENIZER.encode("x1234 = 56").tokens
    assert [token for token in tokens if token.isdigit()] == list("123456")
    learned = set(TOKENIZER.get_vocab()) - set(SPECIAL_TOKENS)
    assert not [token for token in learned if len(token) > 1 and any(map(str.isdigit, token))]


def test_special_tokens_are_the_first_ids_and_one_token_each() -> None:
    for number, token in enumerate(SPECIAL_TOKENS):
        assert TOKENIZER.encode(token).ids == [number]
    assert SPECIAL_TOKENS[0] == END_OF_TEXT


def test_nothing_is_added_to_a_text() -> None:
    assert TOKENIZER.encode("a", add_special_tokens=True).tokens == ["a"]


def test_tags_are_shown_and_control_tokens_hidden() -> None:
    ids = TOKENIZER.encode("<think>a</think><|im_end|>").ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_the_same_texts_give_the_same_tokenizer() -> None:
    text = (LAB.parents[2] / "recipes/lab/corpus.py").read_text()
    first, second = (train_tokenizer([text], vocab_size=400) for _ in range(2))
    assert first.to_str() == second.to_str()


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="train on more text"):
        train_tokenizer(["a"])


def test_chat_template_is_the_format_that_was_trained_on(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "That."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == chatml("What?", "That.", "Be brief.")


def test_chat_template_opens_the_answer(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_chat_template_renders_tools_calls_and_responses(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "3"},
        ],
        tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}],
        tokenize=False,
    )
    assert '\n{"type": "function", "function": {"name": "add", "parameters": {}}}\n' in rendered
    one = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{one}\n{one}<|im_end|>\n" in rendered
    assert rendered.endswith(
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n"
        "<tool_response>\n3\n</tool_response><|im_end|>\n"
    )
