"""Where keys are in int4, a model is loaded with what its keys have in common."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.native import core
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.steps import Part, Stepper
from tests.helpers.tiny import tiny_llama


def loaded(checkpoint, state: str, backend: str = "reference") -> LoadedModel:
    return load_model(
        EngineConfig(
            model=str(checkpoint),
            backend=backend,
            kv_cache_dtype=state,
            max_model_len=40,
            kv_cache_memory_bytes=1 << 20,
        )
    )


def test_mirrors_are_of_the_model_alone(tmp_path) -> None:
    one, other = (tiny_llama(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    first, again, another = loaded(one, "int4"), loaded(one, "int4"), loaded(other, "int4")
    assert first.numerics_id == again.numerics_id
    assert first.numerics_id != another.numerics_id
    for layout, same in zip(first.layouts, again.layouts, strict=True):
        heads, width = layout.spec.uniform.heads, layout.spec.uniform.width
        assert layout.mirrors is not None
        assert layout.mirrors.shape == (len(layout.layers), heads, width)
        np.testing.assert_allclose((layout.mirrors**2).sum(axis=-1), 2, rtol=1e-5)
        assert np.array_equal(layout.mirrors, same.mirrors)


@pytest.mark.parametrize("state", ["float32", "int8", "k=int8,v=int4"])
def test_only_keys_in_int4_have_mirrors(state: str, tmp_path) -> None:
    model = loaded(tiny_llama(tmp_path), state)
    assert all(layout.mirrors is None for layout in model.layouts)


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_backends_agree_where_keys_are_mirrored(tmp_path) -> None:
    checkpoint = tiny_llama(tmp_path)

    def logits(state: str, backend: str) -> np.ndarray:
        stepper = Stepper(loaded(checkpoint, state, backend))
        return stepper.step([Part(0, list(range(30)))]).logits

    ours, theirs = logits("int4", "reference"), logits("int4", "cpu")
    # The kernels round queries to 8 bits too, which moves logits far less than 4 bits of keys do.
    rounded = np.linalg.norm(logits("float32", "reference") - ours)
    assert np.linalg.norm(ours - theirs) < 0.4 * rounded


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_mirrors_of_other_sizes_are_refused() -> None:
    spec = StateSpec.attention(2, 16, "int4")
    with pytest.raises(ValueError, match="layers, heads and width"):
        CpuBackend(1).allocate([GroupLayout((0,), spec, 4, 16, np.zeros((1, 2, 15), np.float32))])
    int8 = StateSpec.attention(2, 16, "int8")
    with pytest.raises(ValueError, match="keys in int4 have a mirror"):
        CpuBackend(1).allocate([GroupLayout((0,), int8, 4, 16, np.zeros((1, 2, 16), np.float32))])
