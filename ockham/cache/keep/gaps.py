"""What the rules share whose heads keep different numbers of cells. No technique lives here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.core.arrays import Ints


def with_gaps(kept: Sequence[Sequence[Ints]]) -> Ints:
    """The cells that each head of each layer keeps, as `Keeping.keep` gives them. The numbers of
    any two differ by whole blocks."""
    most = max(len(own) for of_layer in kept for own in of_layer)
    cells = np.full((len(kept), len(kept[0]), most), -1, np.int32)
    for index, of_layer in enumerate(kept):
        for head, own in enumerate(of_layer):
            cells[index, head, most - len(own) :] = own
    return cells
