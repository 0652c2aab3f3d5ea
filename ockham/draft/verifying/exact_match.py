"""Accept what the model would have said itself."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.asks import Ask
from ockham.core.registry import register


class ExactMatchAsk(Ask, kw_only=True, frozen=True):
    """Drafted tokens of the request are accepted only so, whatever the engine's setting is."""


@register("verifier", "exact_match", exact=True)
class ExactMatch:
    """A drafted token is accepted if it is the one that is drawn in its place.

    Drafts change no token then.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "exact_match"
    Ask: ClassVar[type[ExactMatchAsk]] = ExactMatchAsk

    def least_logprob(self, ask: ExactMatchAsk) -> None:
        """See `Verifier`."""
        return
