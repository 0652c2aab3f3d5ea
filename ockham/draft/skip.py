"""Draft with the model itself, without some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar, Literal

import msgspec

from ockham.core.arrays import Ints
from ockham.core.cost import ATTENTION, FEED_FORWARD, Skips, Sublayer
from ockham.core.errors import ConfigError
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.seams import OwnModel, Wish
from ockham.draft.structures.parts import LastToken, PartDrafter

PARTS = {
    "layer": (ATTENTION, FEED_FORWARD),
    "attention": (ATTENTION,),
    "feed_forward": (FEED_FORWARD,),
}
"""What of a layer may be left out."""
_SHALLOW = 3
"""Layers of a model whose last one may be left out by choice too."""
FORETOLD = 16
"""Tokens that were said already by which two choices are compared."""
_FIRST_PAUSE, _LAST_PAUSE = 64, 512
"""Tokens that were drafted for between two comparisons, which take the time of some steps; doubled
with each in which the other choice was no better."""


class SkipOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`layers` are the numbers of the layers that are left out, counted from 0, and `part` is what
    of them: layer (all of it), attention or feed_forward. As text they are joined by +, "5+7".
    Without `layers`, what is left out is chosen while the model runs: `share` of all attentions and
    feed-forwards, by themselves or (`part`) of one kind alone."""

    layers: list[int] | str | None = None
    part: Literal["layer", "attention", "feed_forward"] = "layer"
    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError(
                "share is above 0 and below 1, the part of the model that drafts leave out; got "
                f"share = {self.share}."
            )
        if self.layers is not None and not self.numbers:
            raise ConfigError(
                "layers is empty; name a layer that drafts leave out, or leave layers away for a "
                "choice that is made while the model runs."
            )

    @property
    def numbers(self) -> list[int]:
        """The layers that are named."""
        if not isinstance(self.layers, str):
            return self.layers or []
        numbers = self.layers.split("+")
        if not all(each.isascii() and each.isdigit() for each in numbers):
            raise ConfigError(
                f"layers are numbers joined by +, as in 5+7; got {shown(self.layers)}."
            )
        return [int(each) for each in numbers]


@register("drafter", "skip", exact=True, books=("skip",))
class Skip(PartDrafter):
    """What the model says without some of its attentions and feed-forwards, which the whole model
    verifies.

    Neighbouring layers do similar things, so that a model without some of them says much of what it
    says with them; nothing is trained and no byte is added (self-speculative decoding, Zhang et al.
    2024, arXiv:2309.08168). What is left out is named, or it is chosen for each text while that is
    written (SWIFT, Xia et al. 2024, arXiv:2410.06916): it begins evenly spaced between the first
    and the last layer. Now and then another choice, which differs in one sublayer, is tried on the
    tokens that were said last, and the better one goes on. `ockham techniques measure drafter/skip`
    says what it is worth.
    """

    name: ClassVar[str] = "skip"

    Options: ClassVar[type[msgspec.Struct]] = SkipOptions

    def __init__(self, options: SkipOptions) -> None:
        self._options = options

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        super().attach_model(model)
        options = self._options
        parts = PARTS[options.part]
        there = [each for each in model.sublayers if each[1] in parts]
        self._free: list[Sublayer] = []
        """What may be left out, where that is chosen while the model runs."""
        if options.layers is not None:
            self._first = _named(options.numbers, options.part, model)
            return
        ends = (0, model.layers - 1) if model.layers > _SHALLOW else (0,)
        self._free = [each for each in there if each[0] not in ends]
        if not self._free:
            raise ConfigError(
                f"of a model with {model.layers} layers nothing can be left out by choice, because "
                f"the first always runs (part = {options.part!r}); choose another method."
            )
        count = min(max(1, round(options.share * len(there))), len(self._free))
        spaced = [(2 * i + 1) * len(self._free) // (2 * count) for i in range(count)]
        self._first = frozenset(self._free[place] for place in spaced)

    def open(self, salt: str) -> Choosing:
        """See `Drafter`."""
        return Choosing(self._first)

    def skips(self, stream: LastToken) -> Skips:
        """What is left out now."""
        assert isinstance(stream, Choosing), "`open` makes no others"
        return stream.skips

    def begin(self, streams: Sequence[LastToken], wishes: Sequence[Wish]) -> None:
        """Try another choice, for one of the streams at most."""
        for stream in streams:
            if isinstance(stream, Choosing):
                stream.drafting = True
        if len(self._free) == len(self._first) or not self._free:
            return
        for stream, wish in zip(streams, wishes, strict=True):
            if isinstance(stream, Choosing) and stream.due:
                self._try_another(stream, wish)
                return

    def _try_another(self, stream: Choosing, wish: Wish) -> None:
        """Which of two choices foretells more of the latest tokens?"""
        other = stream.other(self._free)
        said = stream.latest
        foretold = self._model.foretold(wish.view, said[:-1], (stream.skips, other))
        better = False
        if foretold is not None:
            now, then = (
                sum(a == b for a, b in zip(each, said[1:], strict=True)) for each in foretold
            )
            better = then > now
        stream.tried(other if better else None)


class Choosing(LastToken):
    """The latest tokens of a sequence, and what is left out where its next ones are drafted: a
    function of its text and of how often it was drafted for."""

    def __init__(self, skips: Skips) -> None:
        self.skips = skips
        self.latest: list[int] = []
        """The tokens that were said last, or read."""
        self.drafting = False
        """Whether its next tokens are drafted."""
        self._since = 0
        """Tokens that were drafted for, right or wrong, since the last comparison."""
        self._pause, self._tries = _FIRST_PAUSE, 0

    def extend(self, tokens: Ints) -> None:
        super().extend(tokens)
        self.latest = [*self.latest, *tokens[-FORETOLD - 1 :].tolist()][-FORETOLD - 1 :]
        self._since += len(tokens) * self.drafting
        self.drafting = False

    @property
    def due(self) -> bool:
        """Whether another choice is to be tried now."""
        return self._since >= self._pause and len(self.latest) > FORETOLD

    def other(self, free: Sequence[Sublayer]) -> Skips:
        """A choice that leaves one sublayer out and another one in."""
        rng = Random(self._tries)
        left_in = [each for each in free if each not in self.skips]
        left_out = [each for each in free if each in self.skips]
        return self.skips - {rng.choice(left_out)} | {rng.choice(left_in)}

    def tried(self, better: Skips | None) -> None:
        """Another choice was tried, and is taken if it was better."""
        self._since, self._tries = 0, self._tries + 1
        self._pause = _FIRST_PAUSE if better else min(2 * self._pause, _LAST_PAUSE)
        self.skips = self.skips if better is None else better


def _named(numbers: Sequence[int], part: str, model: OwnModel) -> Skips:
    """The sublayers of named layers. Raises ConfigError for one that is not there, or for all."""
    for layer in numbers:
        if not 0 <= layer < model.layers:
            raise ConfigError(
                f'the method "skip" names layer {shown(layer)}, but the model has the layers 0 to '
                f"{model.layers - 1}; name some of them."
            )
        if not any((layer, each) in model.sublayers for each in PARTS[part]):
            raise ConfigError(
                f'the method "skip" leaves out the {part} of layer {layer}, which has none; name '
                "another layer or another part."
            )
    named = {(layer, each) for layer in numbers for each in PARTS[part]}
    skips = frozenset(each for each in model.sublayers if each in named)
    if len(skips) == len(model.sublayers):
        raise ConfigError(
            f'the method "skip" names all {model.layers} layers, and nothing would be left to '
            "draft with; name fewer."
        )
    return skips
