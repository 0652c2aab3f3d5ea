"""Draft from the tokens that were likely before, though another one was taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import Draft, Drafter, DraftStream, OwnRows, Seen, Wants
from ockham.draft.structures.adjacency import DEEPER, ROW_BYTES, WIDTH, Adjacency, make_adjacency
from ockham.draft.structures.learning import LearningOptions
from ockham.draft.structures.tenants import Tenants

_LIKELY = Wants(candidates=WIDTH)
_BY_PLACE = (0.4, 0.15, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015)


@register("drafter", "recycling", exact=True, books=("recycling",), paper="187")
class Recycling(Drafter):
    """What the model found likely after the same token the last time (Token Recycling).

    A matrix keeps, for each token, the eight likeliest next ones of the last row that had it as its
    input, drafted rows that were not accepted among them; where only the text is known (of a
    prompt), what followed comes first. Drafts are trees among them, searched by their chances
    instead of in a fixed shape. A token's kind is its place in its row, at the first level and
    below it.

    No part of "auto": its rows are more often wasted than accepted (docs/techniques.md).
    """

    name: ClassVar[str] = "recycling"
    automatic: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    observes: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = _BY_PLACE * DEEPER

    Options: ClassVar[type[msgspec.Struct]] = LearningOptions

    def __init__(self, options: LearningOptions) -> None:
        self._matrix = make_adjacency(options.learned_bytes // ROW_BYTES)
        self._tenants = Tenants()

    def open(self, salt: str) -> RecyclingStream:
        return RecyclingStream(self._matrix, self._tenants.number(salt))

    @property
    def bytes(self) -> int:
        return self._matrix.bytes


class RecyclingStream(DraftStream):
    """One sequence's last token."""

    def __init__(self, matrix: Adjacency, tenant: int) -> None:
        self._matrix = matrix
        self._tenant = tenant
        self._last = np.empty(0, np.int32)

    def extend(self, tokens: Ints) -> None:
        self._matrix.extend(self._tenant, np.concatenate((self._last, tokens)))
        self._last = tokens[-1:]

    def wants(self, own: OwnRows) -> Wants:
        return _LIKELY

    def saw(self, own: OwnRows, seen: Seen) -> None:
        tokens, candidates = own.tokens[seen.rows], seen.candidates
        read = tokens >= 0  # what follows a mark follows no token
        if not read.all():
            tokens, candidates = tokens[read], np.ascontiguousarray(candidates[read])
        self._matrix.observe(self._tenant, tokens, candidates)

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        if not len(self._last):
            return None
        tokens, parents, kinds = self._matrix.propose(
            self._tenant, int(self._last[0]), most, accepted, worth
        )
        return Draft(tokens, parents, kinds) if tokens else None
