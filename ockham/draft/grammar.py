"""Draft what the grammar of the output leaves no choice about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ockham.core.arrays import Ints
from ockham.core.registry import register
from ockham.core.seams import Constraint, Draft, Drafter, DraftStream


@register("drafter", "grammar", exact=True, books=("grammar",))
class GrammarDrafter(Drafter):
    """The tokens that a structured output goes on with whatever the model says.

    Keys of a JSON schema, the rest of a choice: where the grammar leaves one continuation, its
    tokens are known, and one step computes the rows of all of them. They are always accepted.
    (SGLang calls this jump-forward decoding.)
    """

    name: ClassVar[str] = "grammar"
    certain: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = (1.0,)

    def open(self, salt: str) -> GrammarStream:
        return _FREE

    def open_constrained(self, salt: str, constraint: Constraint) -> GrammarStream:
        return GrammarStream(constraint)


class GrammarStream(DraftStream):
    """One sequence's grammar, if it has one."""

    def __init__(self, constraint: Constraint | None) -> None:
        self._constraint = constraint

    def extend(self, tokens: Ints) -> None:
        pass

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        if self._constraint is None:
            return None
        tokens = self._constraint.forced()[:most]
        return Draft(tokens, range(-1, len(tokens) - 1), [0] * len(tokens)) if tokens else None


_FREE = GrammarStream(None)
