"""Prompts that ask a model for the text between two others, by the tokens that it was trained with.

A model of code knows *fill-in tokens* (FIM): what stands before the gap, what stands behind it, and
where the model shall go on. Their spellings differ by family, and are data here. Files of GGUF name
them by their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams

CUT_TOKENS = 256
"""A text that does not fit is cut by so many tokens at a time (by fewer where the room is small):
so the cut stays where it is, and the state of the rest in the cache, while somebody types."""


class Family(msgspec.Struct, frozen=True):
    """How the tokens are spelled. `middle` is None where the prompt ends with the text before the
    gap; `suffix_first` says that the text behind the gap comes first. `repo` begins a repository
    and `file` another file of it; `ends` are further tokens that end what is filled in."""

    name: str
    prefix: str
    suffix: str
    middle: str | None
    repo: str | None = None
    file: str | None = None
    ends: tuple[str, ...] = ()
    suffix_first: bool = False


_BAR, _LOW = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"

FAMILIES = (
    Family(
        name="Qwen2.5-Coder",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        repo="<|repo_name|>",
        file="<|file_sep|>",
        ends=("<|fim_pad|>", "<|endoftext|>"),
    ),
    Family(
        name="CodeGemma",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        file="<|file_separator|>",
    ),
    Family(
        name="Granite 4",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        repo="<|reponame|>",
        file="<|filename|>",
        ends=("<|fim_pad|>", "<|endoftext|>"),
    ),
    Family(
        name="StarCoder2",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        repo="<repo_name>",
        file="<file_sep>",
        ends=("<fim_pad>", "<|endoftext|>"),
    ),
    Family(
        name="StarCoder, Granite",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        repo="<reponame>",
        file="<filename>",
        ends=("<fim_pad>", "<|endoftext|>"),
    ),
    Family(
        name="SantaCoder",
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        ends=("<fim-pad>", "<|endoftext|>"),
    ),
    Family(
        name="DeepSeek-Coder",
        prefix=f"<{_BAR}fim{_LOW}begin{_BAR}>",
        suffix=f"<{_BAR}fim{_LOW}hole{_BAR}>",
        middle=f"<{_BAR}fim{_LOW}end{_BAR}>",
        ends=("<|EOT|>",),
    ),
    Family(
        name="Code Llama",
        prefix=f"{_LOW}<PRE>",
        suffix=f"{_LOW}<SUF>",
        middle=f"{_LOW}<MID>",
        ends=(f"{_LOW}<EOT>",),
    ),
    Family(
        name="Codestral",
        prefix="[PREFIX]",
        suffix="[SUFFIX]",
        middle=None,
        suffix_first=True,
    ),
    Family(
        name="Seed-Coder",
        prefix="<[fim-prefix]>",
        suffix="<[fim-suffix]>",
        middle="<[fim-middle]>",
        suffix_first=True,
    ),
    Family(
        name="GLM-4",
        prefix="<|code_prefix|>",
        suffix="<|code_suffix|>",
        middle="<|code_middle|>",
    ),
)


class Extra(msgspec.Struct, frozen=True):
    """Text of another file that is shown to the model."""

    filename: str
    text: str


class Prompt(msgspec.Struct, frozen=True):
    """`cut` says that not all of the texts had room."""

    token_ids: list[int]
    cut: bool


class FillIn(msgspec.Struct, frozen=True):
    """The tokens of one model, by their ids."""

    prefix: int
    suffix: int
    middle: int | None
    repo: int | None
    file: int | None
    ends: tuple[int, ...]
    suffix_first: bool

    def prompt(
        self,
        encode: Callable[[str], list[int]],
        begin: Sequence[int],
        before: str,
        behind: str,
        extra: Sequence[Extra] = (),
        room: int | None = None,
    ) -> Prompt:
        """The tokens of a prompt for what stands between `before` and `behind`. `begin` are those
        that every prompt begins with. With `room`, the prompt has at most so many tokens: the first
        of `extra` are left out, then the beginning of `before` and the end of `behind`."""
        prefix, suffix = encode(before), encode(behind)
        shown = [token for each in self._files(encode, extra) for token in each]
        cut = False
        if room is not None:
            room -= len(begin) + 3
            step = max(1, min(CUT_TOKENS, room // 4))
            over = len(prefix) + len(suffix) - room
            if over > 0:
                prefix, suffix = _shorten(prefix, suffix, room, step)
            dropped = _steps(len(shown) + len(prefix) + len(suffix) - room, step)
            cut = over > 0 or dropped > 0
            shown = shown[dropped:]
        head, tail = [self.prefix, *prefix], [self.suffix, *suffix]
        parts = (tail, head) if self.suffix_first else (head, tail)
        middle = [] if self.middle is None else [self.middle]
        return Prompt([*begin, *shown, *parts[0], *parts[1], *middle], cut)

    def ending(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the tokens that end what is filled in."""
        if params.ignore_eos:
            return params
        stops = [*(params.stop_token_ids or ()), *self.ends]
        return msgspec.structs.replace(params, stop_token_ids=list(dict.fromkeys(stops)))

    def _files(self, encode: Callable[[str], list[int]], extra: Sequence[Extra]) -> list[list[int]]:
        """The other files, as the model was trained to see them where it was."""
        if not extra:
            return []
        if self.file is None:
            return [encode(f"\n\n--- {each.filename} ---\n\n{each.text}") for each in extra]
        found = [] if self.repo is None else [[self.repo, *encode("repository\n")]]
        found += [[self.file, *encode(f"{each.filename}\n{each.text}")] for each in extra]
        return [*found, [self.file, *encode("current\n")]]


def _shorten(
    prefix: list[int], suffix: list[int], room: int, step: int
) -> tuple[list[int], list[int]]:
    """The end of one and the beginning of the other, three to one where both are long."""
    kept = min(len(suffix), max(room // 4, room - len(prefix)))
    dropped = _steps(len(prefix) + kept - room, step)
    return prefix[dropped:], suffix[:kept]


def _steps(tokens: int, step: int) -> int:
    """How many tokens are cut to be rid of so many."""
    return -(-max(0, tokens) // step) * step


def find(token_id: Callable[[str], int | None], named: Mapping[str, Any]) -> FillIn | None:
    """The tokens of a vocabulary, where it has them. `named` are those that a GGUF file names: role
    -> spelling."""
    known = next(
        (
            each
            for each in sorted(FAMILIES, key=lambda each: -_known(each, token_id))
            if all(
                spelling is None or token_id(spelling) is not None
                for spelling in (each.prefix, each.suffix, each.middle)
            )
        ),
        None,
    )
    spelled = msgspec.structs.asdict(known) if known is not None else {}
    spelled |= {role: name for role, name in named.items() if role != "pad"}
    prefix, suffix, middle, repo, file = (
        None if spelled.get(role) is None else token_id(spelled[role])
        for role in ("prefix", "suffix", "middle", "repo", "file")
    )
    if prefix is None or suffix is None:
        return None
    marks = (prefix, suffix, middle, repo, file)
    words = [*spelled.get("ends", ()), *(named[role] for role in ("pad",) if role in named)]
    ends = [token for token in (*marks, *map(token_id, words)) if token is not None]
    suffix_first = bool(spelled.get("suffix_first"))
    return FillIn(prefix, suffix, middle, repo, file, tuple(dict.fromkeys(ends)), suffix_first)


def _known(family: Family, token_id: Callable[[str], int | None]) -> int:
    """How many of a family's spellings are tokens: some families share the first three."""
    spellings = (family.prefix, family.suffix, family.middle, family.repo, family.file)
    return sum(each is not None and token_id(each) is not None for each in spellings)


def missing() -> InvalidRequest:
    """What is said where a model has none."""
    return InvalidRequest(
        "this model has no tokens to fill in text between two others (FIM): ask a model of code "
        "that has them, such as Qwen2.5-Coder, StarCoder2 or DeepSeek-Coder. /v1/completions goes "
        "on from a text without a suffix.",
        "suffix",
    )
