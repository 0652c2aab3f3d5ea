"""Byte pairs merged by the native core give what the `tokenizers` library gives, to the token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from ockham.core.errors import ModelError
from ockham.kernels.native import core
from ockham.lab.vocabulary import CONTROLS, USERS, made_up_vocabulary
from ockham.model.checkpoint.gguf import tokenizer as gguf_tokenizer
from ockham.model.checkpoint.gguf.byte_pairs import BytePairTokenizer
from ockham.model.checkpoint.gguf.splitting import SPLITTINGS
from ockham.text.tokenizer import Tokenizer
from tests.helpers.vocabularies import write_vocabulary

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

PRES = sorted({splitting: name for name, splitting in SPLITTINGS.items()}.values())
"""One name of each way to cut words."""

WORDS = ["the", " quick", "Brown", "  ", "\n\n", "\t", "123456", "it's", "e\u0301", "\u00e9t\u00e9"]
WORDS += [
    "\u4f60\u597d",
    "\U0001f600\u200d\U0001f4a9",
    "\0",
    "\u0120",
    "def f(x):\n    return x",
    "#!",
]
WORDS += [
    "<|im",
    "_end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\r\n",
    "\u3000",
    *CONTROLS,
    *USERS,
]


def texts(count: int) -> list[str]:
    chance = random.Random(11)
    drawn = ["".join(chance.choices(WORDS, k=chance.randrange(30))) for _ in range(count // 2)]
    letters = [
        chr(chance.choice([*range(1, 0x250), *range(0x3000, 0x3100), 0x1F600])) for _ in "x" * 99
    ]
    drawn += ["".join(chance.choices(letters, k=chance.randrange(80))) for _ in range(count // 2)]
    return ["", " ", *WORDS, *drawn]


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tokenizer, Tokenizer]:
    """A file's tokenizer as it is, and by the library alone."""
    found = Tokenizer(path)
    assert isinstance(found._backend, BytePairTokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_tokenizer, "read_pairs", lambda *_: None)
        oracle = Tokenizer(path)
    assert isinstance(oracle._backend, Library)
    return found, oracle


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    stream = tokenizer.stream(skip)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("pre", PRES)
def test_texts_have_the_library_s_tokens_and_tokens_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    tokens, merges = made_up_vocabulary(2000, every_byte=True)
    keys: dict[str, Any] = {"tokenizer_pre": pre, "bos_token_id": 1997 - 3, "eos_token_id": 70}
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, **keys)
    found, oracle = both(path, monkeypatch)
    chance = random.Random(5)
    for text in texts(300):
        for special in (True, False):
            ids = oracle.encode(text, special)
            assert found.encode(text, special) == ids, text
        drawn = chance.choices(range(len(tokens) + 5), k=chance.randrange(30))
        for each in (ids, drawn):
            for skip in (True, False):
                assert found.decode(each, skip) == oracle.decode(each, skip)
                assert streamed(found, each, skip) == streamed(oracle, each, skip)


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
def test_all_that_is_said_of_the_vocabulary_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    tokens, merges = made_up_vocabulary(3000, seed=3, every_byte=True)
    keys = {"tokenizer_pre": pre, "eos_token_id": 300, "pad_token_id": 2, "add_bos_token": False}
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, **keys)
    found, oracle = both(path, monkeypatch)
    assert found.described == oracle.described
    assert found.digest == oracle.digest
    assert found.vocab_size == oracle.vocab_size
    assert found.info == oracle.info
    for token in (*range(len(tokens) + 3), -1, 2**32):
        assert found.token_text(token) == oracle.token_text(token)
        assert found.token_bytes(token) == oracle.token_bytes(token)
        if 0 <= token < 2**32:
            assert found.is_silent(token, True) == oracle.is_silent(token, True)
    for token in (*tokens, "", "no token", "\0a"):
        assert found.token_id(token) == oracle.token_id(token)
    assert found.decode(list(range(len(tokens)))) == oracle.decode(list(range(len(tokens))))
    for tokenizer, name in ((found, "a.json"), (oracle, "b.json")):
        tokenizer._backend.save(str(tmp_path / name))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_long_words_and_texts_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, merges = made_up_vocabulary(20_000, seed=9, every_byte=True)
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, tokenizer_pre="qwen2")
    found, oracle = both(path, monkeypatch)
    chance = random.Random(2)
    word = "".join(chance.choices("abcdefgh", k=50_000))
    text = " ".join("".join(chance.choices("etaoinshr", k=chance.randrange(9))) for _ in word)
    for each in (word, text):
        ids = found.encode(each)
        assert ids == oracle.encode(each)
        assert found.decode(ids) == each


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tokens, merges: tokens.append("the same"),
        lambda tokens, merges: tokens.__setitem__(-1, "\0a"),
        lambda tokens, merges: merges.append(merges[0]),
    ],
)
def test_a_vocabulary_that_is_not_plain_is_the_library_s(tmp_path: Path, spoil: Any) -> None:
    tokens, merges = made_up_vocabulary(400, every_byte=True)
    tokens.append("the same")
    spoil(tokens, merges)
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, tokenizer_pre="gpt-2")
    assert isinstance(Tokenizer(path)._backend, Library)


def without(letters: str) -> tuple[list[str], list[str]]:
    """A vocabulary that lacks some letters, and what is made of them."""
    tokens, merges = made_up_vocabulary(1500, seed=4, every_byte=True)
    lacks = {token for token in tokens[:-6] if set(token) & set(letters)}
    pairs = [merge for merge in merges if not set(merge) & set(letters)]
    return [token for token in tokens if token not in lacks], pairs


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "falcon"])
def test_letters_that_are_no_tokens_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    tokens, merges = without("aT!\u0120\u010a\u00c0\u00e4\u0123")
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, tokenizer_pre=pre)
    found, oracle = both(path, monkeypatch)
    for text in texts(600):
        assert found.encode(text) == oracle.encode(text), text
    assert found.described == oracle.described


def test_words_that_are_not_merged_need_all_letters(tmp_path: Path) -> None:
    tokens, merges = without("a")
    path = write_vocabulary(tmp_path / "m.gguf", tokens, merges, tokenizer_pre="llama-bpe")
    assert isinstance(Tokenizer(path)._backend, Library)


@pytest.mark.parametrize("merge", ["nopair", "a \u4f60", "\u4f60 a", "! \u0100"])
def test_a_merge_that_holds_no_pair_of_tokens_is_refused(tmp_path: Path, merge: str) -> None:
    tokens, merges = made_up_vocabulary(400, every_byte=True)
    path = write_vocabulary(tmp_path / "m.gguf", tokens, [*merges, merge], tokenizer_pre="gpt-2")
    with pytest.raises(ModelError, match=r"is no pair of pieces|does not hold together"):
        Tokenizer(path)
