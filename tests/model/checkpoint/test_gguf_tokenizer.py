"""The tokenizer in a GGUF file splits text as the tokenizer.json that it was made from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, normalizers, processors

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.native import core
from ockham.model.checkpoint.gguf.splitting import SPLITTINGS
from ockham.model.checkpoint.gguf.tokenizer import BYTE, CONTROL, UNKNOWN, _merges, _plain_merges
from ockham.text.tokenizer import Tokenizer as OckhamTokenizer
from ockham.text.tokenizer import load_tokenizer
from tests.helpers.tiny import LAB
from tests.helpers.tiny_tokenizers import (
    SPECIAL,
    byte_level_bpe,
    metaspace_byte_fallback,
    save,
)

TEXTS = [
    "The quick brown fox",
    " a leading space,  two inside and a trailing one ",
    "def quicksort(items):\n    return sorted(items)\t# 12345 and 67,890",
    "It's the worst, they'll say: \u00e9t\u00e9, \u4f60\u597d, \U0001f600\u200d\U0001f4a9!\r\n\n",
    "<s>spelled out</s> specials <unk>",
    "e\u0301 decomposed",
    "",
]
MESSAGES = [{"role": "user", "content": "hello"}]


def write(path: Path, kind: str, tokenizer: Tokenizer, **keys: Any) -> Path:
    """A GGUF file that holds nothing but this tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) or f"[unused{i}]" for i in range(size)]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = {*SPECIAL, *added}
    kinds = [
        gguf.TokenType.CONTROL
        if token in named
        else gguf.TokenType.BYTE
        if kind != "gpt2" and token.startswith("<0x")
        else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer = gguf.GGUFWriter(path, keys.pop("architecture", "llama"))
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if kind != "llama":
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    if kind == "gemma4":
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_unk_token_id(tokens.index("<unk>"))
    if kind == "llama":
        # SentencePiece's scores: the later a piece was made by a merge, the lower.
        order = {"".join(pair): i for i, pair in reversed(list(enumerate(model["merges"])))}
        writer.add_token_scores([-float(order.get(token, -1)) for token in tokens])
        writer.add_unk_token_id(tokens.index("<unk>"))
    if "<s>" in tokens:
        writer.add_bos_token_id(tokens.index("<s>"))
        writer.add_eos_token_id(tokens.index("</s>"))
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def check_same(found: OckhamTokenizer, expected: OckhamTokenizer) -> None:
    for text in TEXTS:
        for special in (True, False):
            ids = expected.encode(text, add_special_tokens=special)
            assert found.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                assert found.decode(ids, skip) == expected.decode(ids, skip)
    assert found.vocab_size == expected.vocab_size
    assert found.bos_token_id == expected.bos_token_id
    assert found.eos_token_id == expected.eos_token_id


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "falcon"])
def test_byte_level_bpe_is_the_same(tmp_path: Path, pre: str) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = SPLITTINGS[pre].pre_tokenizer()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    if pre in ("llama-bpe", "tekken"):
        tokenizer.model.ignore_merges = True
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    path = write(tmp_path / "model.gguf", "gpt2", tokenizer, tokenizer_pre=pre)
    check_same(OckhamTokenizer(path), OckhamTokenizer(save(tokenizer, tmp_path / "json")))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma4"])
def test_sentencepiece_bpe_is_the_same(tmp_path: Path, architecture: str) -> None:
    tokenizer = metaspace_byte_fallback()
    keys: dict[str, Any] = {"architecture": architecture, "add_space_prefix": True}
    kind = "gemma4" if architecture == "gemma4" else "llama"
    path = write(tmp_path / "model.gguf", kind, tokenizer, **keys)
    check_same(OckhamTokenizer(path), OckhamTokenizer(save(tokenizer, tmp_path / "json")))


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path: Path) -> None:
    tokenizer = metaspace_byte_fallback()
    path = write(
        tmp_path / "model.gguf", "llama", tokenizer, add_bos_token=False, add_eos_token=True
    )
    ids = OckhamTokenizer(path).encode("fox")
    assert ids[0] != tokenizer.token_to_id("<s>")
    assert ids[-1] == tokenizer.token_to_id("</s>")


def test_the_chat_template_is_the_file_s(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(LAB / "tokenizer.json"))
    template = (LAB / "chat_template.jinja").read_text()
    path = write(tmp_path / "model.gguf", "gpt2", tokenizer, chat_template=template)
    found = load_tokenizer(EngineConfig(model=str(path)), path)
    assert found is not None
    expected = OckhamTokenizer(LAB).apply_chat_template(MESSAGES)
    assert found.apply_chat_template(MESSAGES) == expected
    assert found.encode("<|im_end|>") == [tokenizer.token_to_id("<|im_end|>")]


def test_several_chat_templates_keep_their_names(tmp_path: Path) -> None:
    shown = "{% for m in messages %}{{ m.content }}{% endfor %}"
    templates = [
        {"name": "default", "template": "plain " + shown},
        {"name": "tool_use", "template": "with tools " + shown},
    ]
    path = write(tmp_path / "m.gguf", "gpt2", byte_level_bpe(), chat_template=templates)
    tokenizer = OckhamTokenizer(path)
    assert tokenizer.apply_chat_template(MESSAGES) == "plain hello"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert tokenizer.apply_chat_template(MESSAGES, tools=tools) == "with tools hello"


def test_kinds_that_are_not_known_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "gpt2", byte_level_bpe(), tokenizer_pre="klingon")
    with pytest.raises(ModelError, match="splits words as 'klingon', which is not known"):
        OckhamTokenizer(path)
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_tokenizer_model("bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="of the kind 'bert'; supported are gpt2, llama, gemma4"):
        OckhamTokenizer(tmp_path / "b.gguf")


def test_what_a_file_says_of_its_tokens_is_told_as_of_a_directory(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        "gpt2",
        byte_level_bpe(),
        tokenizer_pre="gpt-2",
        chat_template="{{ messages[0].content }}",
        pad_token_id=0,
    )
    info = OckhamTokenizer(path).info
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", "<unk>")
    assert info["chat_template"] == "{{ messages[0].content }}"
    directory = OckhamTokenizer(save(byte_level_bpe(), tmp_path / "json", chat_template="x")).info
    assert (directory["bos_token"], directory["eos_token"]) == ("<s>", "</s>")
    assert (directory["pad_token"], directory["chat_template"]) == (None, "x")


def test_a_file_that_does_not_say_how_words_are_split_is_loaded_with_a_warning(
    tmp_path: Path,
) -> None:
    silent = write(tmp_path / "a.gguf", "gpt2", byte_level_bpe())
    (note,) = OckhamTokenizer(silent).notes
    assert "tokenizer.ggml.pre" in note
    assert "--tokenizer" in note
    saying = write(tmp_path / "b.gguf", "gpt2", byte_level_bpe(), tokenizer_pre="gpt-2")
    assert OckhamTokenizer(saying).notes == ()
    pieces = write(tmp_path / "c.gguf", "llama", metaspace_byte_fallback())
    assert OckhamTokenizer(pieces).notes == ()


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_merges_that_follow_from_scores_are_the_same_natively() -> None:
    chance = random.Random(3)
    for _ in range(300):
        count = chance.randrange(60)
        letters = ["a", "b", "\u00e9", "\u2581", "\U0001f600"]
        tokens = ["".join(chance.choices(letters, k=chance.randrange(6))) for _ in range(count)]
        if chance.random() < 0.8:
            tokens = list(dict.fromkeys(tokens))
        scores = [chance.choice([-1.0, -2.5, 0.0, -0.0, 3]) for _ in tokens]
        if tokens and chance.random() < 0.1:
            scores[-1] = float("inf")
        kinds = [chance.choice([1, 1, 1, 2, 3, 4, 6]) for _ in tokens]
        mergeable = [kind not in (UNKNOWN, CONTROL, BYTE) for kind in kinds]
        expected = _plain_merges(tokens, scores, mergeable)
        assert _merges(tokens, scores, kinds) == expected
        once = len(set(tokens)) == len(tokens)
        assert (core.scored_merges(tokens, scores, mergeable) == expected) or not once


def test_a_piece_without_end_is_refused_at_once(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "a" * 1_000_000])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"too long to find .* the longest has 1000000 characters"):
        OckhamTokenizer(tmp_path / "m.gguf")
