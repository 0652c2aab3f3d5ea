"""A gate that a test makes bad while it serves."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.asks import Ask
from ockham.core.cost import FEED_FORWARD, RUNS_ALL, Skips
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate, Stretch

NAME = "planted"


class _Places(SequenceGate):
    """Skips at one place in so many; nowhere for 0."""

    def __init__(self, skips: Skips, every: int) -> None:
        self.skips, self._own, self._every = RUNS_ALL, skips, every

    def at(self, place: int) -> Stretch:
        if not self._every:
            return Stretch(RUNS_ALL, None)
        if place > 10_000:
            return Stretch(RUNS_ALL, None)
        skips = self._own if place % self._every == 0 else RUNS_ALL
        return Stretch(skips, place + 1)


class Planted:
    """Leaves out all feed-forwards at one place in `every`, and nothing while that is 0."""

    name: ClassVar[str] = NAME
    Ask: ClassVar[type[Ask]] = Ask
    every: ClassVar[int] = 0

    def open(self, ask: Ask, model: GatedModel) -> SequenceGate:
        skips = frozenset((layer, FEED_FORWARD) for layer in range(model.layers))
        return _Places(skips, self.every)


def plant() -> type[Planted]:
    """Register the gate, in a test that lets it; its class, whose `every` the test changes."""

    class Own(Planted):
        pass

    return register("gate", NAME, exact=False)(Own)
