"""Draft with the model itself, with the first neurons of its feed-forwards alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from ockham.core.cost import RUNS_ALL, Skips
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import OwnModel
from ockham.draft.structures.parts import LastToken, PartDrafter
from ockham.weights.widths import width_of


class NestedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` of the neurons of each feed-forward drafts, the first ones, rounded to a multiple of
    `multiple`, one at least."""

    share: float = 0.25
    multiple: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError(
                "share is above 0 and below 1, the part of each feed-forward's neurons that "
                f"drafts; got share = {self.share}."
            )
        if self.multiple < 1:
            raise ConfigError(f"multiple is at least 1, got multiple = {self.multiple}.")


@register("drafter", "nested", exact=True, books=("nested",), paper="125")
class Nested(PartDrafter):
    """What the model says with the first neurons of its feed-forwards alone, which the whole model
    verifies.

    In a model that was trained so (MatFormer, Devvrit et al. 2023, arXiv:2310.07707; `ockham train
    nested`) they are a smaller model, which shares its weights and its state with the whole: it
    drafts without a byte of its own. Any other model can draft so too, and is seldom right.
    `ockham techniques measure drafter/nested` says what it is worth.
    """

    name: ClassVar[str] = "nested"

    Options: ClassVar[type[msgspec.Struct]] = NestedOptions

    def __init__(self, options: NestedOptions) -> None:
        self._options = options

    def attach_model(self, model: OwnModel) -> None:
        """See `Drafter`."""
        super().attach_model(model)
        share, multiple = self._options.share, self._options.multiple
        if not model.neurons:
            raise ConfigError(
                'the method "nested" drafts with a part of the neurons of feed-forwards, and this '
                "model has experts, or nothing, in their place; choose another method."
            )
        self._leading = [width_of(whole, share, multiple) for whole in model.neurons]
        if self._leading == list(model.neurons):
            raise ConfigError(
                f"{share:g} of {max(model.neurons)} neurons are all of them in steps of {multiple}:"
                ' give the method "nested" a smaller share or a smaller multiple.'
            )

    def skips(self, stream: LastToken) -> Skips:
        """See `PartDrafter`."""
        return RUNS_ALL

    def leading(self) -> Sequence[int]:
        """See `PartDrafter`."""
        return self._leading
