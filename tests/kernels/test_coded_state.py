"""Keys and values in codes: what is stored, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ockham.core.errors import ConfigError
from ockham.core.state_dtype import state_types
from ockham.engine.engine import Engine
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import StateSpec
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.stored import CODECS, Mirrored, hadamard, mirror_of
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
    rows += np.float32(2.0)
    wide = CODECS[dtype].widen(CODECS[dtype].store(rows))
    half = np.abs(rows).max(axis=-1, keepdims=True) / 127 / 2
    if (
        dtype == "int4"
    ):  # 15 steps span 0.95 of the range, rounded up to bf16, as the zero is rounded
        rows, wide = hadamard(rows), hadamard(wide)
        half = np.ptp(rows, axis=-1, keepdims=True) * (0.95 / 15 / 2) * (1 + 2**-7)
        half = half + np.abs(rows).max(axis=-1, keepdims=True) * 2**-8
    assert (np.abs(wide - rows) <= half * 1.001).all()


@pytest.mark.parametrize("width", [2, 20, 48, 64, 512])
def test_a_mirror_makes_its_direction_one_value(width: int) -> None:
    directions = np.random.default_rng(1).standard_normal((2, 3, width)).astype(np.float32)
    mirrors = mirror_of(directions)
    reflected = directions - (directions * mirrors).sum(axis=-1, keepdims=True) * mirrors
    turned = hadamard(reflected)
    np.testing.assert_allclose(turned, np.broadcast_to(turned[..., :1], turned.shape), atol=1e-5)
    lengths = np.sqrt((directions**2).sum(axis=-1))
    np.testing.assert_allclose(np.abs(turned[..., 0]) * np.sqrt(width), lengths, rtol=1e-5)
    assert not mirror_of(np.zeros((1, width), np.float32)).any()


def test_a_mirror_takes_what_rows_have_in_common_out_of_the_codes() -> None:
    rng = np.random.default_rng(2)
    common = rng.standard_normal((1, 64)).astype(np.float32) * 3
    rows = rng.standard_normal((200, 1, 64)).astype(np.float32) * 0.5
    rows += common * rng.uniform(0.5, 1.5, (200, 1, 1)).astype(np.float32)
    plain, mirrored = CODECS["int4"], Mirrored(CODECS["int4"], mirror_of(common))
    losses = [((each.widen(each.store(rows)) - rows) ** 2).sum() for each in (plain, mirrored)]
    assert losses[1] < losses[0] / 10


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
@pytest.mark.parametrize("mirrors", [False, True])
@pytest.mark.parametrize("state", ["int8", "int4", "k=int8,v=int4", "k=int4,v=int8"])
def test_the_kernels_store_what_the_reference_does(
    state: str, mirrors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first layer, whose inputs are the same; a code may be the next where it is a tie."""
    mirrors = mirrors and state_types(state)[0] == "int4"
    shape = Shape(state=state, head_dim=24, layers=1, mirrors=mirrors)
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
        codes = {
            "int8": [slice(0, 24)],
            "int4": [slice(0, 12)],
            "k=int8,v=int4": [slice(0, 24), slice(28, 40)],
            "k=int4,v=int8": [slice(0, 12), slice(16, 40)],
        }
        for part in codes[state]:
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
