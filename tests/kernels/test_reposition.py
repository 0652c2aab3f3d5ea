"""Stored keys at another position: rotated on, they are what would have been computed there."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ockham.kernels.cpu import CpuBackend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.programs import Shape, on
from tests.helpers.steps import Part, Stepper

SHAPES = {
    "fp32": Shape(),
    "bf16": Shape(state="bfloat16"),
    "partial": Shape(rotary_dim=8, head_dim=24, state="bfloat16"),
    "odd half": Shape(rotary_dim=6, state="bfloat16"),
    "none": Shape(rotary_dim=0, state="bfloat16"),
    "scaled": Shape(rope_scale=1.7),
    "small pages": Shape(page_tokens=4, pages=128, state="bfloat16"),
    "large pages": Shape(page_tokens=64, pages=16, state="bfloat16"),
    "windows": Shape(layers=3, windows=(None, 20), state="bfloat16", kv_heads=1),
}
BACKENDS = ["reference", *isas.NAMES]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "reference":
        return ReferenceBackend()
    isas.use(request.param, monkeypatch)
    return CpuBackend(2)


def wide(state: np.ndarray) -> np.ndarray:
    return state.view(ml_dtypes.bfloat16).astype(np.float32) if state.dtype == np.uint16 else state


def filled(shape: Shape, backend, tokens: list[int], at: int) -> tuple[Stepper, np.ndarray]:
    """A stepper whose sequence 0 holds `tokens` from position `at` on, after as many zeros; and
    where they stand."""
    stepper = Stepper(on(backend, shape), seed=at)
    stepper.step([Part(0, [0] * at + tokens)])
    pages = np.array(stepper.sequences[0].tables[0])
    cells = np.arange(at, at + len(tokens))
    return stepper, pages[
        cells // shape.page_tokens
    ] * shape.page_tokens + cells % shape.page_tokens


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("start", "stop"), [(40, 7), (3, 90), (33, 33)])
def test_a_key_that_moved_is_the_key_computed_there(
    name: str, start: int, stop: int, backend
) -> None:
    """In the first layer, whose keys depend on the token and its position alone."""
    shape = SHAPES[name]
    tokens = np.random.default_rng(1).integers(1, 100, 37).tolist()
    there, expected_slots = filled(shape, backend, tokens, stop)
    expected = wide(there.planes.read(0, expected_slots))
    stepper, source = filled(shape, backend, tokens, start)
    free = np.array(stepper.free[0][: 1 + 40 // shape.page_tokens])
    offsets = 1 + np.arange(len(tokens))
    target = free[offsets // shape.page_tokens] * shape.page_tokens + offsets % shape.page_tokens
    shifts = np.full(len(tokens), stop - start, np.int32)
    before = stepper.planes.read(0, source)
    stepper.executor.reposition(0, source, target, shifts)
    stored = stepper.planes.read(0, target)
    if start == stop:
        assert np.array_equal(stored, before)
    assert np.array_equal(stored[:, 1], before[:, 1]), "values are copied as they are"
    # Keys are rounded twice instead of once, and angles are rounded to fp32.
    close = {"rtol": 2**-7, "atol": 2**-6} if stored.dtype == np.uint16 else {"atol": 1e-4}
    np.testing.assert_allclose(wide(stored)[0, 0], expected[0, 0], **close)


@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_are_the_reference(name: str, backend) -> None:
    """Any slots to any others, each with a shift of its own, in every group of layers."""
    shape, rng = SHAPES[name], np.random.default_rng(2)
    stepper, oracle = (Stepper(on(each, shape)) for each in (backend, ReferenceBackend()))
    slots = rng.permutation(shape.pages * shape.page_tokens)[:300]
    slots[:60] = np.sort(slots[:60])
    slots[200:260] = 100 + np.arange(60)
    source, target = slots[:150], np.setdiff1d(np.arange(1024), slots)[:150]
    target = target if rng.random() < 0.5 else rng.permutation(target)
    shifts = np.repeat(rng.integers(-300, 300, 15), 10).astype(np.int32)
    for group in range(len(stepper.model.layouts)):
        every = np.arange(shape.pages * shape.page_tokens)
        empty = stepper.planes.read(group, every)
        state = rng.normal(size=empty.shape).astype(np.float32)
        bits = state.astype(ml_dtypes.bfloat16).view(np.uint16)
        content = bits if empty.dtype == np.uint16 else state
        for each in (stepper, oracle):
            each.planes.write(group, every, content)
            each.executor.reposition(group, source, target, shifts)
        found, expected = (each.planes.read(group, every) for each in (stepper, oracle))
        assert np.array_equal(found[:, 1], expected[:, 1])
        untouched = np.setdiff1d(every, target)
        assert np.array_equal(found[:, :, untouched], content[:, :, untouched])
        close = {"rtol": 2**-7, "atol": 1e-6} if found.dtype == np.uint16 else {"atol": 1e-6}
        np.testing.assert_allclose(wide(found), wide(expected), **close)


def test_slots_that_do_not_exist_are_refused() -> None:
    if core is None:
        pytest.skip("the native core was not built")
    stepper = Stepper(on(CpuBackend(1), Shape()))
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="slot 5000 is not one of the 1024"):
        stepper.executor.reposition(0, one + 5000, one, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="needs a target slot and a shift"):
        stepper.executor.reposition(0, one, one, np.zeros(2, np.int32))
