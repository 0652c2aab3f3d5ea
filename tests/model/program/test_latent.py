"""Multi-head latent attention: what is kept of a token, what it costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.kernels.ops import AttentionOutput, LatentInput, Route
from ockham.model.loading import load_model
from ockham.model.program.costs import cost_of
from tests.helpers.oracle import load
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_latent

PROMPTS = [np.random.default_rng(5).integers(0, 97, n).tolist() for n in (40, 3)]


def changed(directory: Path, **values: object) -> Path:
    """A tiny checkpoint with another config.json."""
    tiny_latent(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


@pytest.mark.parametrize(("dtype", "item"), [("bfloat16", 2), ("float32", 4)])
def test_one_row_of_a_token_is_all_that_is_kept(dtype: str, item: int, tmp_path: Path) -> None:
    model = load(tiny_latent(tmp_path, rank=48, rotated=16), kv_cache_dtype=dtype)
    [layout] = model.layouts
    assert layout.cell_bytes == len(layout.layers) * (48 + 16) * item
    assert layout.spec.latent
    assert layout.spec.attends


def test_a_key_costs_its_row_twice_for_each_head(tmp_path: Path) -> None:
    model = load(tiny_latent(tmp_path, rank=48, rotated=16))
    [group] = cost_of(model.program, model.layouts).groups
    assert (group.heads, group.head_dim, group.kv_heads) == (4, 64, 1)


@pytest.mark.parametrize("dtype", ["int8", "int4", "k=int8,v=int4"])
def test_codes_are_refused_for_rows_that_are_key_and_value(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="latent rows of this model cannot be kept in"):
        load(tiny_latent(tmp_path), kv_cache_dtype=dtype)


def test_biases_of_latent_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="multi-head latent attention with biases"):
        load(changed(tmp_path, attention_bias=True))


def test_groups_that_do_not_come_out_even_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="3 experts be chosen in 2 of 3 groups of 8 experts"):
        load(changed(tmp_path, n_group=3))


def test_the_projections_of_heads_are_quantised_as_other_matrices_are(tmp_path: Path) -> None:
    directory = tiny_latent(tmp_path, rank=64, plain=32, query_rank=32)
    config = EngineConfig(model=str(directory), quantization="int8", max_num_seqs=2)
    ops = load_model(config).program.ops
    inputs = [op for op in ops if isinstance(op, LatentInput)]
    outputs = [op for op in ops if isinstance(op, AttentionOutput)]
    assert {key.format for op in inputs for key in op.keys} == {"int8"}
    assert {value.format for op in outputs for value in op.values} == {"int8"}
    assert {(key.out_features, key.in_features) for key in inputs[0].keys} == {(64, 32)}


def test_the_backends_agree(tmp_path: Path) -> None:
    directory = tiny_latent(tmp_path)
    models = [load(directory, backend=backend) for backend in ("cpu", "reference")]
    found, meant = (prompt_logits(model, PROMPTS, 7) for model in models)
    for one, other in zip(found, meant, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_experts_are_chosen_in_the_best_groups(tmp_path: Path) -> None:
    [route] = [op for op in load(tiny_latent(tmp_path)).program.ops if isinstance(op, Route)]
    assert (route.groups, route.kept_groups, route.group_best) == (4, 2, 2)
