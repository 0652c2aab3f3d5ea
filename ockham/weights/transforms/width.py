"""The smaller model that the first channels of a nested one are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.widths import feed_forwards, narrow, width_of

NAME = "width"


class SizeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`keep` is the share of the channels that stays, rounded to a multiple of `multiple`."""

    keep: float = 0.5
    multiple: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep must be above 0 and at most 1, got {self.keep}.")
        if self.multiple < 1:
            raise ConfigError(f"multiple must be at least 1, got {self.multiple}.")


@register("transform", NAME, exact=False, paper="125")
class Width:
    """Keep the first channels of each feed-forward and expert, and no others.

    Of a model that is nested (`nest`, or trained so as MatFormer is: Devvrit et al. 2023,
    arXiv:2310.07707), that is a smaller model which shares its weights. Nothing is fitted.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[msgspec.Struct]] = SizeOptions

    def __init__(self, options: SizeOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        keep, step = self._options.keep, self._options.multiple
        wholes = {name: model.get(name).shape[1] for name in feed_forwards(model)}
        kept = {name: np.arange(width_of(whole, keep, step)) for name, whole in wholes.items()}
        if keep < 1 and all(len(kept[name]) == whole for name, whole in wholes.items()):
            raise ConfigError(
                f"{NAME} removes no channel where {keep:g} of them stay in steps of {step}: give a "
                "smaller share or a smaller multiple."
            )
        return narrow(model, kept, {}, compensate=False)
