"""Run as many neurons of a feed-forward as a row needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.asks import Ask
from ockham.core.cost import RUNS_ALL
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate, Stretch
from ockham.core.sparing import ALL, SKIPPED, RoutingRule
from ockham.model.checkpoint.gate_files import read_routers

KNOWN_RULES = 64
"""Rules that are held, so that requests that ask the same share them."""
PANEL = 16
"""Neurons are counted in steps of so many, in which matrices are packed."""


class AdaptiveWidthOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`router` is a directory that `ockham train gate` wrote: its routers choose for each row and
    layer how many of the first neurons run. Without one, the share `share` of them runs for every
    row. A router's choice is cheaper the higher the `price` is: `price` times the share of the
    neurons is taken off the score of each choice."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.5, 0.75)}

    router: str = ""
    share: float = 0.5
    price: float = 0.0

    def __post_init__(self) -> None:
        wrong = _wrong(self.share, self.price)
        if wrong is not None:
            raise ConfigError(wrong)


class AdaptiveWidthAsk(Ask, kw_only=True, frozen=True):
    """`price` and `share` as in the engine's options; what the ask leaves out is as they say. A
    `share` takes the place of the router. `first` is the number of the token, counted from 0 with
    the prompt, from which rows choose; the rows before it run everything."""

    share: float | None = None
    price: float | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.first < 0:
            raise InvalidRequest(
                f"first is the number of a token, 0 or more; got {shown(self.first)}.",
                "adaptive_width",
            )


class ChoosingGate(SequenceGate):
    """Rows choose by one rule."""

    skips = RUNS_ALL

    def __init__(self, rule: RoutingRule) -> None:
        self.spares = rule
        self._first = rule.place

    def at(self, place: int) -> Stretch:
        """See `SequenceGate`. Rows choose from the rule's place on."""
        return Stretch(RUNS_ALL, self._first if place < self._first else None)


@register("gate", "adaptive_width", exact=False, books=("adaptive_width",))
class AdaptiveWidth:
    """Each row runs as many of a feed-forward's first neurons as a trained router chooses.

    Where a model was trained so that its first neurons are a smaller feed-forward (`ockham train
    nested`), most tokens need few of them. A router of each layer reads the row before the
    feed-forward and chooses all, some or none. Approximate (adaptive computation modules, Wojcik et
    al. 2023, arXiv:2312.10193; small, big or skip: Duo-LLM, Alizadeh et al. 2024,
    arXiv:2410.10846). `ockham train gate` trains routers; `ockham techniques measure
    adaptive_width` says what they cost here.
    """

    name: ClassVar[str] = "adaptive_width"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[AdaptiveWidthOptions]] = AdaptiveWidthOptions
    Ask: ClassVar[type[AdaptiveWidthAsk]] = AdaptiveWidthAsk

    def __init__(self, options: AdaptiveWidthOptions) -> None:
        self._options = options
        self._routers = read_routers(Path(options.router)) if options.router else None
        self._rules: dict[tuple[GatedModel, bool, float], RoutingRule] = {}
        self._digest = "" if self._routers is None else _digest(self._routers.weights)

    def identity(self, ask: AdaptiveWidthAsk) -> str:
        """What an ask stands for: its fields, and what the router's files hold."""
        return msgspec.json.encode(ask, order="sorted").decode() + self._digest

    def open(self, ask: AdaptiveWidthAsk, model: GatedModel) -> ChoosingGate:
        """See `Gate`."""
        share = self._options.share if ask.share is None else ask.share
        price = self._options.price if ask.price is None else ask.price
        wrong = _wrong(share, price)
        if wrong is None and not any(model.neurons):
            wrong = "no feed-forward of the model has neurons of which some could run alone."
        if wrong is not None:
            raise InvalidRequest(f"adaptive_width: {wrong}", "adaptive_width")
        even = self._routers is None or ask.share is not None
        key = (model, even, share if even else price)
        rule = self._rules.get(key)
        if rule is None:
            rule = self._even(share, model) if even else self._routed(price, model)
            if len(self._rules) == KNOWN_RULES:
                self._rules.clear()
            self._rules[key] = rule
        return ChoosingGate(msgspec.structs.replace(rule, place=ask.first))

    def _even(self, share: float, model: GatedModel) -> RoutingRule:
        """The same share for every row."""
        widths = [width_of(share, neurons) for neurons in model.neurons]
        shape = (model.layers, 1)
        return RoutingRule(
            np.array(widths, np.int32).reshape(shape),
            np.zeros((*shape, model.hidden_size), np.float32),
            np.zeros(shape, np.float32),
            0,
        )

    def _routed(self, price: float, model: GatedModel) -> RoutingRule:
        routers = self._routers
        assert routers is not None, "without them the share is even"
        layers, _, hidden = routers.weights.shape
        if (layers, hidden) != (model.layers, model.hidden_size):
            raise InvalidRequest(
                f"the routers of {self._options.router} are for {layers} layers of width {hidden}, "
                f"and the model has {model.layers} of width {model.hidden_size}; train some for "
                "it.",
                "adaptive_width",
            )
        try:
            return routers.rule(model.neurons, price)
        except ValueError as error:
            raise InvalidRequest(f"{self._options.router}: {error}", "adaptive_width") from None


def width_of(share: float, neurons: int) -> int:
    """How many neurons a share is, in steps of a panel: `SKIPPED` for none, `ALL` for all."""
    if not neurons or share >= 1.0:
        return ALL
    return min(neurons, round(share * neurons / PANEL) * PANEL) or SKIPPED


def _digest(weights: Floats) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(weights).tobytes()).hexdigest()[:16]


def _wrong(share: float, price: float) -> str | None:
    """What contradicts itself, in a sentence."""
    if not 0.0 <= share <= 1.0:
        return f"share is a share of the neurons, from 0 to 1; got {shown(share)}."
    if not abs(price) <= 1e6:
        return f"price is a number from -1000000 to 1000000; got {shown(price)}."
    return None
