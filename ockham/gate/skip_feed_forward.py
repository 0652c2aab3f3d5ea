"""Skip feed-forwards once they change little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.cost import RUNS_ALL
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import GatedModel, SequenceGate, Stretch
from ockham.core.sparing import SparingRule


class SkipFeedForwardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Once a feed-forward turns a row by so little that the cosine between the row before and after
    it is `threshold` or more, the row skips the next `length` feed-forwards. `edge` is the share of
    the layers at each end in which none is skipped, at least one layer unless it is 0. The prompt
    and the first `full` generated tokens skip nothing."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"threshold": (0.95, 0.98)}

    threshold: float = 0.98
    length: int = 1
    edge: float = 0.2
    full: int = 25

    def __post_init__(self) -> None:
        wrong = _wrong(self.threshold, self.length, self.edge, self.full)
        if wrong is not None:
            raise ConfigError(wrong)


class SkipFeedForwardAsk(Ask, kw_only=True, frozen=True):
    """`threshold`, `length`, `edge` and `full` as in the engine's options; what the ask leaves out
    is as they say. `first` is the number of the token, counted from 0 with the prompt, from which
    feed-forwards may be skipped, in place of `full`."""

    threshold: float | None = None
    length: int | None = None
    edge: float | None = None
    full: int | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 0:
            raise InvalidRequest(
                f"first is the number of a token, 0 or more; got {shown(self.first)}.",
                "skip_feed_forward",
            )


class SparingGate(SequenceGate):
    """Rows of generated tokens decide by one rule."""

    skips = RUNS_ALL

    def __init__(self, rule: SparingRule, full: int | None) -> None:
        """`full` is how many generated tokens skip nothing; None: the rule says from where on."""
        self.spares = self._rule = rule
        self._full = full

    def for_prompt(self, tokens: int) -> SparingGate:
        """See `SequenceGate`."""
        if self._full is None:
            return self
        place = tokens + self._full
        return SparingGate(msgspec.structs.replace(self._rule, place=place), None)

    def at(self, place: int) -> Stretch:
        """See `SequenceGate`. Rows decide from the rule's place on."""
        first = self._rule.place
        return Stretch(RUNS_ALL, first if place < first else None)


@register("gate", "skip_feed_forward", exact=False, books=("skip_feed_forward",))
class SkipFeedForward:
    """A row skips its next feed-forwards once one of them has changed it little.

    In the middle of a deep model, feed-forwards hardly turn the residual stream. Attention always
    runs, so that every row finds all keys. Each row decides by itself, while it is computed, and
    the same in any batch; the bytes of a feed-forward are saved where all rows of a step skip it.
    Approximate (FFN-SkipLLM, Jaiswal et al. 2024, arXiv:2404.03865); `ockham techniques measure
    skip_feed_forward` says what it costs here.
    """

    name: ClassVar[str] = "skip_feed_forward"
    shares: ClassVar[bool] = True
    trial: ClassVar[dict[str, float]] = {"threshold": 0.5, "full": 4, "length": 2}
    Options: ClassVar[type[SkipFeedForwardOptions]] = SkipFeedForwardOptions
    Ask: ClassVar[type[SkipFeedForwardAsk]] = SkipFeedForwardAsk

    def __init__(self, options: SkipFeedForwardOptions) -> None:
        self._options = options

    def alters_prompts(self, ask: SkipFeedForwardAsk) -> bool:
        """A prompt runs everything, unless the ask names a token."""
        return ask.first is not None

    def open(self, ask: SkipFeedForwardAsk, model: GatedModel) -> SparingGate:
        """See `Gate`."""
        own = self._options
        threshold = own.threshold if ask.threshold is None else ask.threshold
        length = own.length if ask.length is None else ask.length
        edge = own.edge if ask.edge is None else ask.edge
        full = own.full if ask.full is None else ask.full
        wrong = _wrong(threshold, length, edge, full)
        if wrong is not None:
            raise InvalidRequest(f"skip_feed_forward: {wrong}", "skip_feed_forward")
        ends = max(1, round(edge * model.layers)) if edge else 0
        rule = SparingRule(threshold, length, ends, model.layers - ends, ask.first or 0)
        return SparingGate(rule, None if ask.first is not None else full)


def _wrong(threshold: float, length: int, edge: float, full: int) -> str | None:
    """What contradicts itself, in a sentence."""
    if not -1.0 <= threshold <= 1.0:
        return f"threshold is a cosine from -1 to 1; got {shown(threshold)}."
    if not 1 <= length <= 10_000:
        return f"length is a number of feed-forwards from 1 to 10000; got {shown(length)}."
    if not 0.0 <= edge < 0.5:
        return f"edge is a share of the layers below 0.5; got {shown(edge)}."
    if full < 0:
        return f"full is a number of tokens, 0 or more; got {shown(full)}."
    return None
