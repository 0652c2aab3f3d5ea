"""The `n` choices of a request, one noise stream each."""

from __future__ import annotations

from typing import ClassVar

from ockham.core.asks import Ask
from ockham.core.registry import register
from ockham.core.seams import Problem


class ChoicesAsk(Ask, kw_only=True, frozen=True):
    """The request's `n` and its other sampling parameters say all."""


@register("search", "choices", exact=True)
class Choices:
    """The sampler draws each of the `n` choices, and a caller is told of them as they come.

    The engine forks them off the prompt by itself. This is what other searches are measured
    against, and what a request asks for where the engine's setting names another.
    """

    saves: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = "choices"
    Ask: ClassVar[type[ChoicesAsk]] = ChoicesAsk

    def begin(self, ask: ChoicesAsk, problem: Problem) -> None:
        """There is nothing to search for."""
