"""Draft by counts of three tokens in a row, which adapt while text passes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream
from ockham.draft.structures.learning import LearningOptions
from ockham.draft.structures.tenants import Tenants
from ockham.draft.structures.trigrams import CONTEXT_BYTES, Trigrams, make_trigrams

_AFTER_ONE = (0.04, 0.1, 0.2, 0.35, 0.45, 0.5)
_AFTER_TWO = (0.06, 0.2, 0.3, 0.5, 0.65, 0.75)


@register("drafter", "trigram", exact=True, books=("trigram",), paper="212")
class Trigram(Drafter):
    """What followed the last two tokens before, by its counts (ADED).

    Counts of what follows two tokens, and one, begin with nothing and adapt to all that a tenant's
    requests bring or are answered; old counts are halved. The draft is made by a tree search that
    weighs what is likely against what was not looked at yet. A token's kind is its share of the
    counts, after two tokens or one.

    No part of "auto": it gains no time that could be told, and copying knows longer runs
    (docs/techniques.md).
    """

    name: ClassVar[str] = "trigram"
    automatic: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = _AFTER_ONE + _AFTER_TWO

    Options: ClassVar[type[msgspec.Struct]] = LearningOptions

    def __init__(self, options: LearningOptions) -> None:
        self._counts = make_trigrams(options.learned_bytes // CONTEXT_BYTES)
        self._tenants = Tenants()

    def open(self, salt: str) -> TrigramStream:
        return TrigramStream(self._counts, self._tenants.number(salt))

    @property
    def bytes(self) -> int:
        return self._counts.bytes


class TrigramStream(DraftStream):
    """One sequence's last two tokens."""

    def __init__(self, counts: Trigrams, tenant: int) -> None:
        self._counts = counts
        self._tenant = tenant
        self._last = np.empty(0, np.int32)

    def extend(self, tokens: Ints) -> None:
        text = np.concatenate((self._last, tokens))
        self._counts.extend(self._tenant, text, len(self._last))
        self._last = text[-2:]

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        if not len(self._last):
            return None
        before = int(self._last[0]) if len(self._last) == 2 else -1
        tokens, parents, kinds = self._counts.propose(
            self._tenant, before, int(self._last[-1]), most, accepted, worth
        )
        return Draft(tokens, parents, kinds) if tokens else None
