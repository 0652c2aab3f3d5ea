"""What is kept of one alternative that was scored."""

from __future__ import annotations

import msgspec


class Score(msgspec.Struct, frozen=True):
    """One alternative of one unit, or one shape of a block (`form` names it, and it has no kernel
    and no bytes of its own). `kernel` is what multiplies with it; `error` the squared error
    of the unit's outputs, as a share of their squares; `loss` the mean KL divergence, None where it
    was not run."""

    unit: str
    form: str
    kernel: str
    nbytes: int
    error: float
    loss: float | None = None
