"""Draft what followed the last time that the text went like this."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream
from ockham.draft.structures.suffix_automaton import make_automaton

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64)
"""Lengths of the match before a token at which a kind begins."""
_PRIOR = (0.15, 0.3, 0.42, 0.5, 0.56, 0.6, 0.68, 0.76, 0.82, 0.87, 0.9, 0.94)
_OTHER = 0.35
"""What the second of two continuations is worth, against the first."""
_SIDE_TOKENS = 4
_BRANCHES = 3
_KIND = tuple(bisect_right(_LENGTHS, length) - 1 for length in range(_LENGTHS[-1] + 1))


class CopyingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`prompt_lookup_min` is the shortest match that is copied from, in tokens."""

    prompt_lookup_min: int = 1

    def __post_init__(self) -> None:
        if self.prompt_lookup_min < 1:
            raise ConfigError(
                f"prompt_lookup_min must be at least 1, got {self.prompt_lookup_min}."
            )


@register("drafter", "copying", exact=True, books=("copying",), paper="286")
class Copying(Drafter):
    """What followed the longest suffix of the text when it came before (CopySpec).

    Prompt and output alike are copied from (CopySpec; prompt lookup). A suffix automaton finds the
    longest match for every token in constant time; where the text went on differently after a
    shorter one, the draft is a tree. A token's kind is the length of the match before it.
    """

    name: ClassVar[str] = "copying"
    kinds: ClassVar[tuple[float, ...]] = _PRIOR + tuple(_OTHER * share for share in _PRIOR)

    Options: ClassVar[type[msgspec.Struct]] = CopyingOptions

    def __init__(self, options: CopyingOptions) -> None:
        self._least = options.prompt_lookup_min

    def open(self, salt: str) -> CopyStream:
        return CopyStream(self._least)


class CopyStream(DraftStream):
    """One sequence's automaton."""

    def __init__(self, least: int) -> None:
        self._automaton = make_automaton()
        self._least = least
        self._accepted: Sequence[float] | None = None
        self._worth = 0.0
        self._shortest = self._branches = 0
        """What is worth it at these shares, which rarely change."""

    def extend(self, tokens: Ints) -> None:
        self._automaton.extend(tokens)

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        if accepted is not self._accepted or worth != self._worth:
            self._accepted, self._worth = accepted, worth
            self._shortest, self._branches = self._worthy(accepted, worth)
        if not self._shortest:
            return None
        kinds = len(_LENGTHS)
        tokens, parents, matched = self._automaton.propose(
            most, self._branches, _SIDE_TOKENS, self._shortest
        )
        if not tokens:
            return None
        longest = len(_KIND) - 1
        found = [_KIND[length if length < longest else longest] for length in matched]
        begun = False
        for i, parent in enumerate(parents):
            if parent < 0:
                if begun:
                    found[i] += kinds  # a continuation beside the first
                begun = True
        return Draft(tokens, parents, found)

    @property
    def bytes(self) -> int:
        return self._automaton.bytes

    def _worthy(self, accepted: Sequence[float], worth: float) -> tuple[int, int]:
        """The shortest match that is worth copying from, 0 for none, and how many branches."""
        kinds = len(_LENGTHS)
        worthy = [kind for kind in range(kinds) if accepted[kind] >= worth]
        if not worthy:
            return 0, 0
        sides = any(accepted[kind] >= worth for kind in range(kinds, 2 * kinds))
        return max(self._least, _LENGTHS[worthy[0]]), _BRANCHES if sides else 1
