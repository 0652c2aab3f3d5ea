"""Keys and values in codes: what is stored, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.engine.engine import Engine
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import StateSpec
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.stored import CODECS, hadamard
from tests.helpers import isas
from tests.helpers.programs import Shape, on
from tests.helpers.serving import make_engine
from tests.helpers.steps import Part, Stepper
from tests.helpers.tiny import tiny_llama

TYPES = ["int8", "int4"]
needs_core = pytest.mark.skipif(core is None, reason="the native core was not built")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [2, 20, 48, 64, 512])
def test_an_element_is_off_by_half_a_step_at_most(dtype: str, width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3, width)).astype(np.float32)
    wide = CODECS[dtype].widen(CODECS[dtype].store(rows))
    steps = {"int8": 127.0, "int4": 7.5}[dtype]
    if dtype == "int4":
        rows, wide = hadamard(rows), hadamard(wide)
    half = np.abs(rows).max(axis=-1, keepdims=True) / steps / 2
    assert (np.abs(wide - rows) <= half * 1.001).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_without_codes(dtype: str) -> None:
    rows = np.zeros((4, 8), np.float32)
    rows[1] = 1e-35
    rows[2, 3] = np.inf
    rows[3, 5] = np.nan
    with np.errstate(invalid="ignore"):
        stored = CODECS[dtype].store(rows)
    wide = CODECS[dtype].widen(stored)
    assert not wide[:2].any()
    assert np.isnan(wide[2:]).all()


@needs_core
@pytest.mark.parametrize("state", ["int8", "int4", "k=int8,v=int4"])
def test_the_kernels_store_what_the_reference_does(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first layer, whose inputs are the same; a code may be the next where it is a tie."""
    shape = Shape(state=state, head_dim=24, layers=1)
    slots = np.arange(shape.pages * shape.page_tokens)
    oracle = Stepper(on(ReferenceBackend(), shape))
    oracle.step([Part(0, list(range(70)))])
    expected = oracle.planes.read(0, slots)
    for isa in isas.AVAILABLE:
        isas.use(isa, monkeypatch)
        stepper = Stepper(on(CpuBackend(2), shape))
        stepper.step([Part(0, list(range(70)))])
        found = stepper.planes.read(0, slots)
        assert found.shape == expected.shape
        assert found.dtype == np.uint8
        codes = [slice(0, 24)] if state == "int8" else [slice(0, 12)]
        for part in codes if state != "k=int8,v=int4" else [slice(0, 24), slice(28, 40)]:
            assert (found[..., part] != expected[..., part]).mean() < 0.01


@needs_core
def test_a_value_that_is_not_finite_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in isas.AVAILABLE:
        isas.use(isa, monkeypatch)
        stepper = Stepper(on(CpuBackend(1), Shape(state="int8")))
        stepper.step([Part(0, list(range(20)))])
        slots = np.array([stepper.sequences[0].tables[0][0] * 16 + 3])
        state = stepper.planes.read(0, slots)
        broken = state.copy()
        broken[:, 1, ..., -4:] = 0xFF  # the scale
        tree = [Part(0, [1], [-1])]  # which leaves the sequence as it was
        for stored, finite in ((broken, False), (state, True)):
            stepper.planes.write(0, slots, stored)
            assert (np.isfinite(stepper.step(tree).logits) == finite).all()


def test_what_codes_cannot_hold_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"heads of 15 elements cannot be kept in int4"):
        StateSpec.attention(2, 15, "int4")
    with pytest.raises(ConfigError, match=r"heads of 514 elements cannot be kept in int8"):
        StateSpec.attention(2, 514, "int8")
    assert StateSpec.attention(2, 15, "int8").nbytes == 2 * 2 * (15 + 4)
    with pytest.raises(ConfigError, match="must have the same shape"):
        _ = replace_dtype(StateSpec.attention(1, 8, "int8"), "bfloat16").uniform
    checkpoint = tiny_llama(tmp_path, head_dim=18, num_key_value_heads=1)
    engine = make_engine(checkpoint, kv_cache_dtype="q4_0")
    assert isinstance(engine, Engine)
    assert engine.model.plan.state_dtype == "int4"
    assert engine.model.layouts[0].cell_bytes == 2 * 2 * (9 + 4)


def replace_dtype(spec: StateSpec, dtype: str) -> StateSpec:
    first, second = spec.planes
    planes = (first, msgspec.structs.replace(second, dtype=dtype))
    return msgspec.structs.replace(spec, planes=planes)
