"""What the IQ types of GGUF files share: codes of several inputs at once, by a grid, and signs.

The grids are constants of ggml-common.h, which the `gguf` package carries: a place in one is a
code, and its values are some few magnitudes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Bytes
from ockham.weights.block_bytes import bits_of

Integers = npt.NDArray[np.integer[Any]]

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Of the types of 4 bits, which have no grid: kvalues_iq4nl of ggml-common.h."""


@cache
def grid_of(kind: str) -> Bytes:
    """The grid of a type: (codes, inputs), which of the grid's values stands there, from the
    lowest. The `gguf` package takes 30 ms to import, and is only here."""
    from gguf import quants

    owner = getattr(quants, kind)
    owner.init_grid()
    values = owner.grid.reshape(owner.grid_shape)
    places: Bytes = np.searchsorted(np.array(owner.grid_map), values).astype(np.uint8)
    return places


def signs_of(sevens: Integers) -> Bytes:
    """Signs of eight inputs, 1 for a negative one, from 7 bits each: the number of ones is even."""
    seven = bits_of(sevens.astype(np.uint8)[..., None])[..., :7]
    return np.concatenate([seven, seven.sum(-1, keepdims=True, dtype=np.uint8) & 1], axis=-1)


def odd(scales: Integers) -> Bytes:
    """Scales s as 2 s + 1."""
    return (2 * scales + 1).astype(np.uint8)


def three_bits(packed: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Four times three bits of each 16-bit integer, the lowest first: (..., n) as (..., 4 n)."""
    place = np.array([0, 3, 6, 9], np.uint16)
    bits: npt.NDArray[np.uint16] = packed[..., None] >> place & np.uint16(7)
    return bits.reshape(*packed.shape[:-1], -1)
