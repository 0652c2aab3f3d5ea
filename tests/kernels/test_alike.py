"""The order of keys by likeness: both backends find the same, and it is one of neighbourhoods."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.kernels.base import GroupLayout
from ockham.kernels.layout import StateSpec
from ockham.kernels.native import core
from ockham.kernels.reference.alike import alike
from ockham.kernels.reference.planes import ReferencePlanes

needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")
HEADS, WIDTH = 2, 24


def clustered(keys: int, clusters: int, seed: int, width: int = WIDTH) -> np.ndarray:
    """Keys around so many directions, of different lengths, each at random places."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, width)) * 4
    of = rng.permutation(np.arange(keys) % clusters)
    found = centres[of] + rng.standard_normal((keys, width)) * 0.1
    rows: np.ndarray = (found * rng.uniform(0.5, 2, (keys, 1))).astype(np.float32)
    return rows


def layout(dtype: str, keys: int) -> GroupLayout:
    return GroupLayout((0, 1), StateSpec.attention(HEADS, WIDTH, dtype), -(-keys // 16) + 2, 16)


@needs_core
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("keys", [16, 48, 64, 80, 640])
def test_both_backends_find_the_same_order(keys: int, dtype: str, threads: int) -> None:
    """To the bit, as long as both read the same keys: those of int4 are turned back in sums whose
    order the backends do not share."""
    from ockham.kernels.cpu import CpuPlanes

    shape = layout(dtype, keys)
    slots = np.random.default_rng(keys).permutation(shape.pages * 16)[:keys].astype(np.int64)
    reference, native = ReferencePlanes([shape]), CpuPlanes([shape], threads)
    for layer in (0, 1):
        rows = np.stack([clustered(keys, 5, seed=10 * layer + h) for h in range(HEADS)], axis=1)
        reference.store(layer, slots, rows, np.zeros_like(rows))
    native.write(0, slots, reference.read(0, slots))
    expected = reference.alike(0, slots)
    assert expected.shape == (2, HEADS, keys)
    np.testing.assert_array_equal(native.alike(0, slots), expected)


def test_neighbourhoods_are_of_one_cluster() -> None:
    keys = clustered(64 * 8, 8, seed=3, width=16)
    order = alike(keys)
    assert sorted(order.tolist()) == list(range(len(keys)))
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    for block in order.reshape(-1, 64):
        assert (unit[block] @ unit[block].T).min() > 0.9
        for group in block.reshape(-1, 16):
            assert (np.diff(group) > 0).all(), "in the order of their places"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_keys_without_a_direction_have_a_place_too(value: float) -> None:
    keys = clustered(128, 4, seed=5)
    keys[::3] = value
    assert sorted(alike(keys).tolist()) == list(range(128))


@needs_core
def test_slots_that_are_not_there_are_refused() -> None:
    from ockham.kernels.cpu import CpuPlanes

    planes = CpuPlanes([layout("float32", 32)], 1)
    with pytest.raises(ValueError, match="slot 4096 is not one"):
        planes.alike(0, np.array([4096]))
    with pytest.raises(ValueError, match="no group 1"):
        planes.alike(1, np.array([0]))
