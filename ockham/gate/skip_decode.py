"""Run fewer layers the longer a text gets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.cost import ATTENTION, FEED_FORWARD, RUNS_ALL, Skips
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate, Stretch


class SkipDecodeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first generated token runs the share `most` of the layers, and the token that comes
    `over` later the share `least`; the depth falls linearly between, and stays at `least`.
    `warm_up` is how many bottom layers every row runs, and then one more: half of the model's
    where it is not said. (The paper's is 1, for models that are trained for it.)"""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"least": (0.75, 0.9)}

    most: float = 1.0
    least: float = 0.75
    over: int = 256
    warm_up: int | None = None

    def __post_init__(self) -> None:
        wrong = _wrong(self.most, self.least, self.over, self.warm_up)
        if wrong is not None:
            raise ConfigError(wrong)


class SkipDecodeAsk(Ask, kw_only=True, frozen=True):
    """`most`, `least`, `over` and `warm_up` as in the engine's options; what the ask leaves out is
    as they say. `first` is the number of the token, counted from 0 with the prompt, from which the
    depth falls; it is the first generated one where the ask does not say."""

    most: float | None = None
    least: float | None = None
    over: int | None = None
    warm_up: int | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 0:
            raise InvalidRequest(
                f"first is the number of a token, 0 or more; got {shown(self.first)}.",
                "skip_decode",
            )


class NarrowingGate(SequenceGate):
    """A depth for each generated token of a sequence: all bottom layers of a warm-up, and as many
    of the top ones as the depth leaves. The rows before `first` run everything."""

    skips = RUNS_ALL

    def __init__(
        self,
        layers: int,
        most: float,
        least: float,
        over: int,
        warm_up: int,
        first: int | None,
    ) -> None:
        self._layers, self._most, self._least = layers, most, least
        self._over, self._warm_up, self._first = over, warm_up, first

    def for_prompt(self, tokens: int) -> NarrowingGate:
        """See `SequenceGate`."""
        first = tokens if self._first is None else self._first
        shares = self._most, self._least
        return NarrowingGate(self._layers, *shares, self._over, self._warm_up, first)

    def depth(self, generated: int) -> int:
        """How many layers the row of a generated token runs, counted from 0."""
        done = min(1.0, generated / self._over)
        share = self._most + (self._least - self._most) * done
        least = min(self._warm_up + 1, self._layers)
        return max(least, min(self._layers, round(share * self._layers)))

    def at(self, place: int) -> Stretch:
        """See `SequenceGate`."""
        first = self._first or 0
        if place < first:
            return Stretch(RUNS_ALL, first)
        depth = self.depth(place - first)
        later = range(place - first + 1, self._over + 1)
        after = bisect_right(later, -depth, key=lambda generated: -self.depth(generated))
        until = first + later[after] if after < len(later) else None
        return Stretch(self._without(depth), until)

    def _without(self, depth: int) -> Skips:
        """The layers between the warm-up and the top ones that are left."""
        bottom = min(self._warm_up, depth)
        skipped = range(bottom, self._layers - (depth - bottom))
        return frozenset((n, part) for n in skipped for part in (ATTENTION, FEED_FORWARD))


@register("gate", "skip_decode", exact=False, books=("skip_decode",))
class SkipDecode:
    """The later a token is generated, the fewer layers its row runs.

    Later tokens of a text are easier to tell than its first ones, so that the depth falls
    linearly with the place. Bottom layers always run, and those in the middle are left out before
    the top ones. Since the depth never rises, every row finds the keys of all rows before it, and
    no state is computed again. Approximate (SkipDecode, Del Corro et al. 2023, arXiv:2307.02628,
    whose models were fine-tuned for it); `ockham techniques measure skip_decode` says what it
    costs here.
    """

    name: ClassVar[str] = "skip_decode"
    shares: ClassVar[bool] = True
    trial: ClassVar[dict[str, float]] = {"over": 16, "least": 0.5}
    Options: ClassVar[type[SkipDecodeOptions]] = SkipDecodeOptions
    Ask: ClassVar[type[SkipDecodeAsk]] = SkipDecodeAsk

    def __init__(self, options: SkipDecodeOptions) -> None:
        self._options = options

    def alters_prompts(self, ask: SkipDecodeAsk) -> bool:
        """A prompt runs all layers, unless the ask names a token."""
        return ask.first is not None

    def open(self, ask: SkipDecodeAsk, model: GatedModel) -> NarrowingGate:
        """See `Gate`."""
        own = self._options
        most = own.most if ask.most is None else ask.most
        least = own.least if ask.least is None else ask.least
        over = own.over if ask.over is None else ask.over
        warm_up = own.warm_up if ask.warm_up is None else ask.warm_up
        if warm_up is None:
            warm_up = model.layers // 2
        wrong = _wrong(most, least, over, warm_up)
        if wrong is None and warm_up >= model.layers:
            wrong = f"warm_up is {shown(warm_up)}, but the model has {model.layers} layers."
        if wrong is not None:
            raise InvalidRequest(f"skip_decode: {wrong}", "skip_decode")
        return NarrowingGate(model.layers, most, least, over, warm_up, ask.first)


def _wrong(most: float, least: float, over: int, warm_up: int | None) -> str | None:
    """What contradicts itself, in a sentence."""
    if not 0.0 < least <= most <= 1.0:
        return (
            "least and most are shares of the layers with 0 < least <= most <= 1; got "
            f"{shown(least)} and {shown(most)}."
        )
    if not 1 <= over <= 1_000_000:
        return f"over is a number of tokens from 1 to 1000000; got {shown(over)}."
    if warm_up is not None and warm_up < 0:
        return f"warm_up is a number of layers, 0 or more; got {shown(warm_up)}."
    return None
