"""When a drafted token is accepted: `Verifier`."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol


class Leniency(NamedTuple):
    """By which technique, and from which log probability, drafted tokens stay that were not
    drawn."""

    name: str
    least_logprob: float


class Verifier(Protocol):
    """Says which drafted tokens of a request's texts stay beside those that the model drew itself.

    A row of the model says how likely each token is that was drafted after it. Where the token that
    is drawn there was drafted, that one stays, whatever the verifier says.
    """

    name: ClassVar[str]

    def least_logprob(self, ask: Any) -> float | None:
        """The log probability under the whole model, at temperature 1 and before any filter, from
        which a drafted token stays in the place of the one that was drawn; None if none does."""
        ...
