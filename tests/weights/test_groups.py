"""Groups that are chosen for each matrix by how much smaller ranges get."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.model.loading import load_model
from ockham.weights.groups import choose_group
from tests.helpers.tiny import tiny_llama, tiny_mixtral

GROUPS = (32, 64, 128)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def even(rows: int = 64, columns: int = 256) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def test_groups_are_halved_while_ranges_shrink_by_more_than_the_share() -> None:
    """Of normal values the largest of 128 is 9% larger than that of 64, and that one 10% larger
    than that of 32."""
    weights = even()
    assert choose_group([weights], GROUPS, 0.2) == 128
    assert choose_group([weights], GROUPS, 0.01) == 32
    ranges = {g: np.abs(weights).reshape(64, -1, g).max(axis=2).mean() for g in GROUPS}
    first, second = (1 - ranges[g] / ranges[2 * g] for g in (64, 32))
    assert first < second
    assert choose_group([weights], GROUPS, first * 1.01) == 128  # the next one is not looked at
    assert choose_group([weights], GROUPS, first * 0.99) == 32


def test_outliers_ask_for_small_groups_and_rows_may_come_in_blocks() -> None:
    weights = even()
    weights[:, 5] *= 30
    assert choose_group([weights], GROUPS, 0.2) == 32
    assert choose_group([weights[:10], weights[10:]], GROUPS, 0.2) == 32
    assert choose_group([weights], (64,), 0.2) == 64


def test_a_converted_model_has_groups_of_its_own_for_each_tensor(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "model", **SIZES), tmp_path / "out"
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][:, 3] *= 30
    save_file(tensors, source / "model.safetensors")
    args = ["convert", str(source), str(out), "--quantization", "int4", "--adaptive-groups", "0.2"]
    result = CliRunner().invoke(cli, [*args, "--mix", "*.0.mlp.down_proj*=q5_0"])
    assert result.exit_code == 0, result.output
    mix = json.loads((out / "config.json").read_text())["quantization_config"]["mix"]
    assert mix[name] == "int4:32"
    made = load_model(EngineConfig(model=str(out), kv_cache_memory_bytes=1 << 20))
    held = [
        matrix.format + str(getattr(matrix, "group", ""))
        for op in made.program.ops
        for field, matrix in op.matrices().items()
        if field == "down"
    ]
    assert held == ["q5_00", "int432"]
    others = {key: form for key, form in mix.items() if "down_proj" not in key}
    assert set(others.values()) == {"int4:128"}
    assert not any("embed" in key or "lm_head" in key for key in others)


def test_experts_of_a_layer_have_one_group(tmp_path: Path) -> None:
    source, out = tiny_mixtral(tmp_path / "model", **SIZES), tmp_path / "out"
    args = ["convert", str(source), str(out), "--quantization", "nf4", "--adaptive-groups", "0.1"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--adaptive-groups", "0.1"), "--adaptive-groups is for --quantization FORMAT only"),
        (("--quantization", "q5_0", "--adaptive-groups", "0.1"), "groups of 'q5_0' cannot be"),
        (("--quantization", "fp8", "--adaptive-groups", "0.1"), "of fp4, int4, int4dq, nf4 can"),
        (
            ("--quantization", "int4", "--adaptive-groups", "1.5"),
            r"is above 0 and below 1, got 1.5",
        ),
        (
            ("--quantization", "int4", "--adaptive-groups", "0.1", "--group-size", "64"),
            "--group-size is for all tensors, --adaptive-groups for each",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(
    tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    source = tiny_llama(tmp_path / "model", **SIZES)
    result = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "out"), *flags])
    assert result.exit_code == 2, result.output
    assert sentence.replace("\\", "") in result.output
    assert not (tmp_path / "out").exists()
