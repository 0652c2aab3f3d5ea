"""How texts are cut into words before byte-level BPE merges them, by `tokenizer.ggml.pre`.

GGUF files name the way, and do not carry it. The names are those of llama.cpp (llama-vocab.cpp);
the ways are those of the tokenizer.json that each model was published with, which llama.cpp follows
but for corner cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer


class Step(Enum):
    """A step that is no expression of its own."""

    DIGITS = auto()  # every digit is a word
    DIGIT_RUNS = auto()  # every run of digits is
    PUNCTUATION = auto()  # every run of punctuation is
    GPT2 = auto()  # words as GPT-2 has them; from here on they are spelled as bytes
    BYTES = auto()  # the same without cutting


@dataclass(frozen=True, slots=True)
class Splitting:
    """`steps` cut one after another what those before them left; of an expression every match is a
    word, and so is what stands between two. `composed` says that texts are brought to Unicode's NFC
    first, `whole` that a word that is a token is not merged from parts, and `begins` that texts
    begin by bos where the file does not say."""

    steps: tuple[str | Step, ...]
    composed: bool = False
    whole: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        def made(step: str | Step) -> PreTokenizer:
            if isinstance(step, str):
                return pre_tokenizers.Split(Regex(step), behavior="isolated")
            if step is Step.PUNCTUATION:
                return pre_tokenizers.Punctuation(behavior="contiguous")
            if step in (Step.DIGITS, Step.DIGIT_RUNS):
                return pre_tokenizers.Digits(individual_digits=step is Step.DIGITS)
            gpt2 = step is Step.GPT2
            return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)

        return pre_tokenizers.Sequence([made(step) for step in self.steps])


_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = _SHORTENED + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_CL100K = _LETTERS + r"|\p{N}{1,3}" + _REST
_QWEN2 = _LETTERS + r"|\p{N}" + _REST
_QWEN35 = (
    _SHORTENED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
)
_SEED = _LETTERS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES


def _cased(end: str) -> str:
    """Words that change from upper to lower case at most once, with what may follow them."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{end}|{start}{_UPPER}+{_LOWER}*{end}"


_TEKKEN = _cased("") + r"|\p{N}" + _MARKS
_O200K = _cased(_SHORTENED + "?") + r"|\p{N}{1,3}" + _MARKS


def _class(ranges: str) -> str:
    """The characters of ranges such as "61-7a b5", as a class without its brackets."""
    ends = (each.split("-") for each in ranges.split())
    return "".join("-".join(chr(int(end, 16)) for end in pair) for pair in ends)


_DEEPSEEK_LETTERS = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f "
    "386 388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd "
    "1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 "
    "1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 "
    "1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 "
    "2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 "
    "2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 "
    "a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 "
    "104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_HAN = "[" + _class("4e00-9fa5 800-4e00 ac00-d7ff") + "]+"
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_class(_DEEPSEEK_LETTERS)}]+",
    rf"\s?[!-/:-~{_class('ff01-ff0f ff1a-ff5e 2018-201f 3000-3002')}]+",
    r"\s+$",
    _HAN,
    Step.DIGITS,
    Step.BYTES,
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, Step.DIGITS, Step.BYTES)
_DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[" + _class("4e00-9fa5 3040-309f 30a0-30ff") + "]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
    Step.BYTES,
)
_BLOOM = rf" ?[^(\s|[.,!?{_class('2026 3002 ff0c 3001 964 6d4 60c')}])]+"
_FALCON = (Step.PUNCTUATION, Step.GPT2, Step.DIGIT_RUNS, "[0-9][0-9][0-9]")

_LLAMA3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral")
_QWEN2_NAMES = ("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2")
_STARCODER_NAMES = ("starcoder", "refact", "smollm", "codeshell", "minerva-7b")
_GPT2_NAMES = (
    *("gpt-2", "default", "phi-2", "gigachat", "mellum", "a.x-4.0", "jais", "trillion"),
    *("exaone4", "granite-docling"),
)

SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(
        (*_LLAMA3_NAMES, "midm-2.0", "lfm2"),
        Splitting((_CL100K, Step.BYTES), whole=True, begins=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting((_CL100K, Step.BYTES))),
    **dict.fromkeys(("glm4", "chatglm-bpe"), Splitting((_CL100K, Step.BYTES))),
    **dict.fromkeys(_QWEN2_NAMES, Splitting((_QWEN2, Step.BYTES), composed=True)),
    "qwen35": Splitting((_QWEN35, Step.BYTES), composed=True),
    "seed-coder": Splitting((_SEED, Step.BYTES)),
    "tekken": Splitting((_TEKKEN, Step.BYTES), whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Splitting((_O200K, Step.BYTES))),
    **dict.fromkeys(_GPT2_NAMES, Splitting((Step.GPT2,))),
    **dict.fromkeys(("olmo", "mpt"), Splitting((Step.GPT2,), composed=True)),
    **dict.fromkeys(_STARCODER_NAMES, Splitting((Step.DIGITS, Step.GPT2))),
    "command-r": Splitting((Step.DIGITS, Step.GPT2), composed=True),
    "falcon": Splitting(_FALCON),
    "deepseek-llm": Splitting(_DEEPSEEK_LLM),
    "deepseek-coder": Splitting(_DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Splitting(_DEEPSEEK_3)),
    "minicpm5": Splitting((r"\p{N}{1,3}", _LETTERS + r"|\p{N}+" + _REST, Step.BYTES), whole=True),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Splitting((_BLOOM, Step.BYTES))),
    "viking": Splitting((_BLOOM, Step.DIGITS, Step.BYTES)),
}
"""`tokenizer.ggml.pre` -> how texts are cut. Unknown names are refused: a text that is cut in
another way gives other tokens than the model was trained on."""
