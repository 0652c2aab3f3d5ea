"""Accept drafted tokens that the model finds likely enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams


class LenientOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`threshold` is the probability from which a drafted token stays."""

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {"threshold": (0.05, 0.2, 0.5)}

    threshold: float = 0.05

    def __post_init__(self) -> None:
        if (wrong := _wrong(self.threshold)) is not None:
            raise ConfigError(wrong)


class LenientAsk(Ask, kw_only=True, frozen=True):
    """`threshold` as in the engine's options, which hold where the ask does not say."""

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and (wrong := _wrong(self.threshold)) is not None:
            raise InvalidRequest(wrong, "lenient")

    def check_params(self, params: SamplingParams) -> None:
        bound = {
            "structured_outputs": params.structured_outputs is not None,
            "bad_words": bool(params.bad_words),
            "allowed_token_ids": params.allowed_token_ids is not None,
            "logit_bias": params.logit_bias is not None,
            "min_tokens": params.min_tokens > 0,
        }
        for name, given in bound.items():
            if given:
                raise InvalidRequest(
                    f"{name} says which tokens may come, and lenient keeps others that were "
                    "drafted; leave one of the two out.",
                    "lenient",
                )


@register("verifier", "lenient", exact=False, books=("lenient",), paper="112")
class Lenient:
    """A drafted token stays if the model gives it a probability of at least a threshold.

    The whole model reads all drafted tokens in one step, and the text goes back to the first one
    that is less likely (Sirius, Zhou et al. 2024, arXiv:2409.03856, whose drafts come from the
    model with some of its neurons). Works with every drafter. Approximate: the text leans towards
    what was drafted, and depends on when something was. `ockham techniques measure lenient` says
    what it costs here.
    """

    name: ClassVar[str] = "lenient"
    Options: ClassVar[type[LenientOptions]] = LenientOptions
    Ask: ClassVar[type[LenientAsk]] = LenientAsk

    def __init__(self, options: LenientOptions) -> None:
        self._options = options

    def least_logprob(self, ask: LenientAsk) -> float:
        """See `Verifier`."""
        return math.log(self._options.threshold if ask.threshold is None else ask.threshold)


def _wrong(threshold: float) -> str | None:
    """What contradicts itself, in a sentence."""
    if not 0.0 < threshold <= 1.0:
        return f"threshold is a probability above 0 and at most 1; got {shown(threshold)}."
    return None
