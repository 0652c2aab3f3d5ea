"""Decide how often rows run the layers that a model runs several times."""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.cost import RUNS_ALL
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate, Stretch

ALWAYS = 1e30
"""Beside which no score of a router counts."""
EVEN = 0.5
"""The threshold at which routers decide as they were trained to."""


class RecursionsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`depth` is how many passes every row takes; 0: as many as the model's routers say. A row
    takes a pass if its router gives that a probability above `threshold`: the higher it is, the
    fewer rows go on."""

    depth: int = 0
    threshold: float = EVEN

    def __post_init__(self) -> None:
        wrong = _wrong(self.depth, self.threshold)
        if wrong is not None:
            raise ConfigError(wrong)


class RecursionsAsk(Ask, kw_only=True, frozen=True):
    """`depth` and `threshold` as in the engine's options; what the ask leaves out is as they say.
    `first` is the number of the token, counted from 0 with the prompt, from which this holds; the
    rows before it go on where the model's routers say so."""

    depth: int | None = None
    threshold: float | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.first < 0:
            raise InvalidRequest(
                f"first is the number of a token, 0 or more; got {shown(self.first)}.", "recursions"
            )


class DeepeningGate(SequenceGate):
    """The same is added to the scores of all rows from a token on."""

    skips = RUNS_ALL

    def __init__(self, deeper: tuple[float, ...], first: int) -> None:
        self.deeper, self.deeper_from = deeper, first

    def at(self, place: int) -> Stretch:
        """See `SequenceGate`. Rows go on otherwise from the first token on that was named."""
        first = self.deeper_from
        return Stretch(RUNS_ALL, first if place < first else None)


@register("gate", "recursions", exact=False, books=("passes",))
class Recursions:
    """Every row takes a number of passes, or goes on at another threshold than the model's routers.

    A model that runs its middle layers several times lets each row decide how often
    (Mixture-of-Recursions, Bae et al. 2025, arXiv:2507.10524). That is the model itself, and needs
    no gate. This one fixes the depth of a request, or makes its rows go on more or less readily.
    Approximate; `ockham techniques measure recursions` says what each depth is worth.
    """

    name: ClassVar[str] = "recursions"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[RecursionsOptions]] = RecursionsOptions
    Ask: ClassVar[type[RecursionsAsk]] = RecursionsAsk

    def __init__(self, options: RecursionsOptions) -> None:
        self._options = options

    def open(self, ask: RecursionsAsk, model: GatedModel) -> DeepeningGate:
        """See `Gate`."""
        depth = self._options.depth if ask.depth is None else ask.depth
        threshold = self._options.threshold if ask.threshold is None else ask.threshold
        wrong = _wrong(depth, threshold)
        if wrong is None and model.passes == 1:
            wrong = "the model runs each of its layers once; use one such as lab-recursive."
        if wrong is None and depth > model.passes:
            wrong = f"depth is {shown(depth)}, but the model has {model.passes} passes."
        if wrong is not None:
            raise InvalidRequest(f"recursions: {wrong}", "recursions")
        if depth:
            deeper = tuple(ALWAYS if n + 1 < depth else -ALWAYS for n in range(model.passes - 1))
        else:
            deeper = (math.log1p(-threshold) - math.log(threshold),) * (model.passes - 1)
        return DeepeningGate(deeper, ask.first)


def _wrong(depth: int, threshold: float) -> str | None:
    """What contradicts itself, in a sentence."""
    if depth < 0:
        return f"depth is a number of passes, or 0 for as many as the routers say; got {depth}."
    if not 0.0 < threshold < 1.0:
        return f"threshold is a probability between 0 and 1; got {shown(threshold)}."
    return None
