"""What was decided about the feed-forwards of the rows of a step under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ockham.core.arrays import Floats, Ints


@dataclass(slots=True)
class Spared:
    """`left` (R,) are the feed-forwards that each row still skips, `groups` the rows that run the
    one under way, by how many neurons they run, `deciding` those of them that decide by it, and
    `stream` what stood in the residual stream before it, of those. `ran` is
    `StepOutput.spared`."""

    left: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    groups: dict[int, Ints] = field(default_factory=dict)
    deciding: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    stream: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    ran: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    unfinished: bool = False
    """Whether other rows run the same operation next, with another number of neurons."""
