"""Words are cut as the tokenizer.json of the models that a name stands for cuts them."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models

from ockham.model.checkpoint.gguf.splitting import SPLITTINGS

BYTES = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(expression: str) -> dict[str, object]:
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace("{1,3}", "")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
PUBLISHED = {
    "llama-bpe": [split(CL100K), BYTES],
    "dbrx": [split(CL100K), BYTES],
    "chatglm-bpe": [split(CL100K), BYTES],
    "qwen2": [split(QWEN2), BYTES],
    "qwen35": [split(QWEN35), BYTES],
    "gpt-4o": [split(O200K), BYTES],
    "tekken": [split(TEKKEN), BYTES],
    "exaone4": [GPT2],
    "granite-docling": [GPT2],
    "minicpm5": [split(r"\p{N}{1,3}"), split(CL100K.replace("{1,3}", "+")), BYTES],
    "starcoder": [DIGITS, GPT2],
    "command-r": [DIGITS, GPT2],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        GPT2,
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ],
    "bloom": [
        split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"),
        BYTES,
    ],
    "deepseek-coder": [
        split("[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
        DIGITS,
        BYTES,
    ],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"),
        split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        BYTES,
    ],
}
"""The `pre_tokenizer` of models that the names stand for."""


@pytest.mark.parametrize("pre", PUBLISHED)
def test_the_steps_are_those_of_the_published_tokenizer_json(pre: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITTINGS[pre].pre_tokenizer()
    found = json.loads(tokenizer.to_str())["pre_tokenizer"]
    assert found == {"type": "Sequence", "pretokenizers": PUBLISHED[pre]}


def test_hunyuans_dense_models_cut_as_deepseek_3() -> None:
    assert SPLITTINGS["hunyuan-dense"] == SPLITTINGS["deepseek-v3"]


def words(pre: str, text: str) -> list[str]:
    cut = SPLITTINGS[pre].pre_tokenizer().pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in cut]


CODE = "I'LL x=(1+2)//3;\r\n\n  HTTPServer's 12345  "
CASES = {
    # A word takes one leading character that is no letter; marks take the line ends after them.
    ("llama-bpe", CODE): "I|'LL| x|=(|1|+|2|)//|3|;\r\n\n| | HTTPServer|'s| |123|45|  ",
    ("qwen2", CODE): "I|'LL| x|=(|1|+|2|)//|3|;\r\n\n| | HTTPServer|'s| |1|2|3|4|5|  ",
    # As Qwen's, but marks take no line ends: those begin the run of white space.
    ("seed-coder", CODE): "I|'LL| x|=(|1|+|2|)//|3|;|\r\n\n| | HTTPServer|'s| |1|2|3|4|5|  ",
    # Upper case ends where lower case begins, but takes one capital along; marks take slashes.
    ("tekken", CODE): "I|'LL| x|=(|1|+|2|)//|3|;\r\n\n| | HTTPServer|'s| |1|2|3|4|5|  ",
    ("tekken", "camelCase !/\n"): "camel|Case| !/\n",
    ("gpt-4o", CODE): "I'LL| x|=(|1|+|2|)//|3|;\r\n\n| | HTTPServer's| |123|45|  ",
    ("gpt-4o", "camelCase don't"): "camel|Case| don't",
    # GPT-2 knows contractions in lower case only, and numbers of any length.
    ("gpt-2", CODE): "I|'|LL| x|=(|1|+|2|)//|3|;|\r\n\n | HTTPServer|'s| 12345|  ",
    ("starcoder", CODE): "I|'|LL| x|=(|1|+|2|)//|3|;|\r\n\n | HTTPServer|'s| |1|2|3|4|5|  ",
    # Punctuation is cut off first, so that contractions are not seen; then numbers by three.
    ("falcon", "don't 12345 a,b =>"): "don|'|t| |123|45| a|,|b| |=>",
    ("falcon", "~~ (x)"): "~~| |(|x|)",
    # Line ends one by one; a space stays with the word; digits one by one.
    ("deepseek-llm", "don't 12\r\n\n x=(y)"): "don|'|t| |1|2|\r|\n|\n| x|=(|y|)",
    # Its class of marks reaches from the colon to the tilde, over all ASCII letters.
    ("deepseek-llm", "caf\u00e9 \u03a9x"): "caf|\u00e9| \u03a9|x",
    ("deepseek-llm", "\u4f60\u597d\uff0c \u4e16a"): "\u4f60\u597d|\uff0c| |\u4e16|a",
    ("deepseek-coder", "caf\u00e9 x=(y)  z\r\n12"): "caf\u00e9| x|=|(|y|)| | z|\r|\n|1|2",
    # Han and kana are words of their own; a mark takes the ASCII letters after it.
    ("deepseek-v3", "a.b 1234 \u304b\u306a\u4e16x"): "a|.b| |123|4| |\u304b\u306a\u4e16|x",
    ("deepseek-v3", "don'tSay x=(y)\n\n z"): "don|'tSay| x|=(|y|)\n\n| z",
    # Words end at white space, brackets, bars and marks of any script.
    ("bloom", "a12b, c.d (e|f)\u3002g  h"): "a12b|,| c|.|d| (|e|||f|)\u3002|g| | h",
    ("viking", "a12b, c"): "a|1|2|b|,| c",
}


@pytest.mark.parametrize(("pre", "text"), CASES)
def test_words_are_cut_so(pre: str, text: str) -> None:
    expected = CASES[pre, text].replace("|||", "|\0|").split("|")
    assert words(pre, text) == [word.replace("\0", "|") for word in expected]


@pytest.mark.parametrize("pre", SPLITTINGS)
def test_nothing_of_a_text_is_lost(pre: str) -> None:
    text = " It's\t\u4f60\u597d, e\u0301 \u0645\u0631\u062d\u0628\u0627\u06d4 12\u00bd\r\n"
    text += "\n (\U0001f600)  end "
    cut = SPLITTINGS[pre].pre_tokenizer().pre_tokenize_str(text)
    byte_of = {char: byte for byte, char in _byte_characters().items()}
    assert bytes(byte_of[char] for word, _ in cut for char in word).decode() == text


def _byte_characters() -> dict[int, str]:
    """How GPT-2 spells bytes: those that can be printed as themselves, the others from 256 on."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {**{b: chr(b) for b in printed}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def test_numbers_in_falcon_are_found_among_the_spelled_bytes() -> None:
    # U+043C is the bytes D0 BC, spelled as two characters of which the second is a number.
    assert [w for w, _ in SPLITTINGS["falcon"].pre_tokenizer().pre_tokenize_str("\u043c")] == [
        "\u00d0",
        "\u00bc",
    ]


def test_models_that_compose_begin_or_keep_whole_words() -> None:
    composed = {name for name, each in SPLITTINGS.items() if each.composed}
    assert composed >= {"qwen2", "stablelm2", "olmo", "mpt", "command-r"}
    assert not composed & {"llama-bpe", "gpt-2", "deepseek-v3", "starcoder", "tekken", "gpt-4o"}
    assert all(SPLITTINGS[name].whole and SPLITTINGS[name].begins for name in ("tekken", "llama3"))
    assert not any(SPLITTINGS[name].whole for name in ("dbrx", "smaug-bpe", "gpt-4o", "qwen2"))
