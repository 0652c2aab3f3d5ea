"""What the rows of a step under way decided about feed-forwards."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints


@dataclass(slots=True)
class Spared:
    """`left` (R,) are the feed-forwards that each row still skips, `runs` the rows that run the one
    under way, `deciding` those of them that decide by it, and `stream` what stood in the residual
    stream before it, of those. `skipped` is `StepOutput.spared`."""

    left: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    runs: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    deciding: Ints = field(default_factory=lambda: np.empty(0, np.int32))
    stream: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    skipped: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
