"""Stored keys at another position: rotated on, they are what would have been computed there."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.kernels.cpu import CpuBackend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.planes import ReferencePlanes
from ockham.lab.kernels.state import fill
from tests.helpers import isas
from tests.helpers.programs import Shape, layouts_of, on
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
    "int8": Shape(state="int8", rotary_dim=12),
    "int4": Shape(state="int4", head_dim=64),
    "mirrored": Shape(state="int4", head_dim=64, mirrors=True),
    "int8 and int4": Shape(state="k=int8,v=int4", page_tokens=4, pages=256, head_dim=24),
}
BACKENDS = ["reference", *isas.NAMES]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "reference":
        return ReferenceBackend()
    isas.use(request.param, monkeypatch)
    return CpuBackend(2)


def wide(state: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values: (layers, cells, heads, head_dim) each."""
    planes = ReferencePlanes(layouts_of(shape))
    layers = [
        [side.codec.widen(side.stored) for side in planes.sides(0, index, each)]
        for index, each in enumerate(state)
    ]
    keys, values = (np.stack(each) for each in zip(*layers, strict=True))
    return keys, values


def close(shape: Shape) -> dict[str, float]:
    """Keys are rounded twice instead of once, and angles are rounded to fp32."""
    if shape.state == "float32":
        return {"atol": 1e-4}
    # A unit of int8 is 1/127 of a row's largest element, one of int4 2/15.
    return {"rtol": 2**-7, "atol": {"b": 2**-6, "i": 0.05, "k": 0.05}[shape.state[0]]}


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
    expected, _ = wide(there.planes.read(0, expected_slots), shape)
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
    keys, values = wide(stored, shape)
    assert np.array_equal(values, wide(before, shape)[1]), "values are copied as they are"
    atol = close(shape)
    if shape.state == "int4":
        atol = {"atol": 2 * 2 / 15 * float(np.abs(expected[0]).max())}
    np.testing.assert_allclose(keys[0], expected[0], **atol)


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
    for group, layout in enumerate(stepper.model.layouts):
        every = np.arange(shape.pages * shape.page_tokens)
        for each in (stepper, oracle):
            fill(each.planes, group, layout, every)
        content = oracle.planes.read(group, every).copy()
        for each in (stepper, oracle):
            each.executor.reposition(group, source, target, shifts)
        found, expected = (each.planes.read(group, every) for each in (stepper, oracle))
        untouched = np.setdiff1d(every, target)
        assert np.array_equal(found[:, :, untouched], content[:, :, untouched])
        keys, values = wide(found, shape)
        other_keys, other_values = wide(expected, shape)
        assert np.array_equal(values, other_values)
        off = np.abs(keys - other_keys)
        if shape.state in ("float32", "bfloat16"):
            assert (off <= 1e-6 + 2**-7 * np.abs(other_keys)).all()
        else:  # few codes are another, by one
            assert off.max() <= (0.04 if shape.state.startswith(("int8", "k=int8")) else 0.7)
            assert (off > 1e-5).mean() < 0.01


def test_slots_that_do_not_exist_are_refused() -> None:
    if core is None:
        pytest.skip("the native core was not built")
    stepper = Stepper(on(CpuBackend(1), Shape()))
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="slot 5000 is not one of the 1024"):
        stepper.executor.reposition(0, one + 5000, one, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="needs a target slot and a shift"):
        stepper.executor.reposition(0, one, one, np.zeros(2, np.int32))
