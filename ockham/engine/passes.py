"""Rows of a model that runs its middle layers several times, each as often as it decides."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.arrays import Ints
from ockham.core.cost import ATTENTION, FEED_FORWARD, ModelCost, Skips
from ockham.engine.gates import Run
from ockham.model.program.description import ModelDescription


@dataclass(frozen=True, slots=True)
class Deep:
    """Which passes the rows of a sequence in a step took, and what that costs.

    `skips[k]` are the sublayers that a row skips which takes 1 + k passes. `took` (passes - 1,
    rows) is as in `StepOutput.deep`, and `held` the cells of each pass but the first before the
    step."""

    skips: tuple[Skips, ...]
    took: Ints
    held: tuple[int, ...]

    @property
    def runs(self) -> list[Run]:
        """What the rows skip, neighbours that skip the same together."""
        found: list[Run] = []
        for count in self.took.sum(axis=0).tolist():
            skips, rows = self.skips[count], 1
            if found and found[-1][0] is skips:
                rows += found.pop()[1]
            found.append((skips, rows))
        return found

    def ran(self, start: int, rows: int, cost: ModelCost, apart: bool = False) -> tuple[int, int]:
        """FLOPs of the first `rows` rows, but for the head, and state bytes that they read, each
        in a step of its own if they are `apart`. The first of them stands in place `start`."""

        def read(own: ModelCost, first: int, count: int) -> int:
            return (own.decode_read_bytes if apart else own.state_read_bytes)(first, count)

        below = cost.without(self.skips[0])
        flops = rows * below.linear_flops + below.attention_flops(start + 1, rows)
        read_bytes = read(below, start + 1, rows)
        for skips, took, held in zip(self.skips[1:], self.took, self.held, strict=True):
            own, count = cost.without(skips), int(took[:rows].sum())
            if count:  # those that go on see each other, and stand side by side
                seen = held + 1, count
                flops += count * (own.linear_flops - below.linear_flops)
                flops += own.attention_flops(*seen) - below.attention_flops(*seen)
                read_bytes += read(own, *seen) - read(below, *seen)
            below = own
        return flops, read_bytes


def skips_of_passes(described: ModelDescription) -> tuple[Skips, ...]:
    """The sublayers that a row skips which takes 1, 2, ... passes."""
    of_layers = [described.pass_of(layer) for layer in range(described.layers)]
    return tuple(
        frozenset(
            (layer, part)
            for layer, own in enumerate(of_layers)
            if own > number
            for part in (ATTENTION, FEED_FORWARD)
        )
        for number in range(described.passes)
    )
