"""What a request allows to be reused approximately: nothing, unless it says so by name."""

from __future__ import annotations

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown


class Approximation(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The approximate reuse that a request asks for.

    `reuse` is the technique's name. `chunks` are runs [start, stop) of the prompt's tokens, in
    order and apart from one another, whose state may be taken from another prompt.
    `recompute_fraction` is the share of their tokens that is computed all the same (None: the
    engine's setting).
    """

    reuse: str
    chunks: list[tuple[int, int]] = []
    recompute_fraction: float | None = None

    def check(self, tokens: int) -> None:
        """Raise InvalidRequest unless this makes sense for a prompt of so many tokens."""
        fraction = self.recompute_fraction
        if fraction is not None and not 0.0 <= fraction <= 1.0:
            raise InvalidRequest(
                f"recompute_fraction must lie in [0, 1], got {shown(fraction)}.",
                "recompute_fraction",
            )
        end = 0
        for start, stop in self.chunks:
            if not end <= start < stop <= tokens:
                raise InvalidRequest(
                    f"the chunk [{start}, {stop}) of a prompt of {tokens} tokens is empty, out of "
                    "order, or outside of it.",
                    "chunks",
                )
            end = stop
