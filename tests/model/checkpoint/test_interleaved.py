"""gpt-oss's stacked experts: gates and ups in turns, in floats and in MXFP4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import Attend, Experts, Route
from ockham.model.checkpoint.opening import open_model
from ockham.model.converting import convert
from ockham.model.loading import LoadedModel
from ockham.model.rewriting.model import RewrittenModel
from tests.helpers.architectures import CASES
from tests.helpers.gpt_oss import QUANTISED, one_by_one, quantise_experts, tiny_gpt_oss
from tests.helpers.oracle import Case, assert_same_logits, load, oracle_logits
from tests.helpers.steps import prompt_logits

GPT_OSS = CASES["gpt-oss"]
CASE = Case("GptOss", {**GPT_OSS.values, "intermediate_size": 64})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], Any]:
    """A checkpoint with experts in MXFP4, the weights that they stand for, and transformers' model
    of those."""
    directory = tmp_path_factory.mktemp("mxfp4")
    oracle = CASE.build()
    oracle.save_pretrained(directory)
    plain = quantise_experts(directory)
    oracle.load_state_dict({k: torch.from_numpy(v) for k, v in plain.items()}, strict=False)
    return directory, plain, oracle


def experts_of(model: LoadedModel) -> list[Experts]:
    return [op for op in model.program.ops if isinstance(op, Experts)]


def check_values(model: LoadedModel, weights: dict[str, np.ndarray]) -> None:
    """Every value of the experts is the checkpoint's, to the bit, gates before ups."""
    named = one_by_one(weights)
    for op in experts_of(model):
        for number, (gate_up, down) in enumerate(zip(op.gate_up, op.down, strict=True)):
            start = f"model.layers.{op.layer}.mlp.experts.{number}."
            both = [named[f"{start}{part}.weight"] for part in ("gate_proj", "up_proj")]
            rows = np.arange(gate_up.out_features, dtype=np.int32)
            assert (gate_up.rows(rows) == np.concatenate(both)).all()
            rows = np.arange(down.out_features, dtype=np.int32)
            assert (down.rows(rows) == named[f"{start}down_proj.weight"]).all()


def test_mxfp4_is_held_as_it_is_stored(
    packed: tuple[Path, dict[str, np.ndarray], Any],
) -> None:
    directory, plain, _ = packed
    model = load(directory)
    assert {each.format for op in experts_of(model) for each in (*op.gate_up, *op.down)} == {
        "mxfp4"
    }
    check_values(model, plain)


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_logits_of_mxfp4_are_those_of_transformers_with_its_values(
    packed: tuple[Path, dict[str, np.ndarray], Any], chunk: int
) -> None:
    directory, plain, oracle = packed
    model = load(directory, quantization="fp32")
    check_values(model, plain)
    assert_same_logits(
        prompt_logits(model, CASE.prompts(), chunk), oracle_logits(oracle, CASE.prompts())
    )


def test_products_with_mxfp4_are_near_those_with_its_values(
    packed: tuple[Path, dict[str, np.ndarray], Any],
) -> None:
    """Inputs are rounded to 8 bits, so that a row may be sent to another expert."""
    directory, _, _ = packed
    exact = {"kv_cache_dtype": "float32"}
    found = prompt_logits(load(directory, **exact), CASE.prompts(), 7)
    plain = prompt_logits(load(directory, backend="reference", **exact), CASE.prompts(), 7)
    for one, other in zip(found, plain, strict=True):
        assert np.abs(one - other).max() < 0.02 * np.abs(other).max()


def test_sinks_and_biases_are_read(tmp_path: Path) -> None:
    model = load(tiny_gpt_oss(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    for op in model.program.ops:
        start = f"model.layers.{getattr(op, 'layer', 0)}."
        if isinstance(op, Attend):
            assert op.sinks is not None
            assert (op.sinks == tensors[start + "self_attn.sinks"]).all()
        elif isinstance(op, Route):
            assert op.bias is not None
            assert (op.bias == tensors[start + "mlp.router.bias"]).all()
        elif isinstance(op, Experts):
            assert op.gate_up_bias is not None
            assert op.down_bias is not None
            both = tensors[start + "mlp.experts.gate_up_proj_bias"]
            stored = np.concatenate([both[:, 0::2], both[:, 1::2]], axis=1)
            assert (op.gate_up_bias == stored.reshape(-1)).all()
            down = tensors[start + "mlp.experts.down_proj_bias"]
            assert (op.down_bias == down.reshape(-1)).all()


def test_windows_take_turns_where_the_config_names_no_layer_types(tmp_path: Path) -> None:
    model = load(tiny_gpt_oss(tmp_path, window=20))
    assert [op.window for op in model.program.ops if isinstance(op, Attend)] == [20, None]


def without(name: str) -> Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]:
    def change(path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        del tensors[name]

    return change


def shorter(name: str) -> Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]:
    def change(path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        tensors[name] = np.ascontiguousarray(tensors[name][:-1])

    return change


def config_of(**values: Any) -> Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None]:
    def change(path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
        config |= values

    return change


def with_nan_scale(path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.experts.down_proj_scales"][1, 2, 0] = 255


ATTENTION, MLP = "model.layers.1.self_attn.", "model.layers.1.mlp."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shorter(f"{ATTENTION}sinks"), r"sinks'.* has the shape \[3\], but .* implies \[4\]"),
        (without(f"{ATTENTION}sinks"), "has no tensor 'model.layers.1.self_attn.sinks'"),
        (without(f"{MLP}experts.gate_up_proj_scales"), "has no tensor .*gate_up_proj_scales'"),
        (without(f"{MLP}experts.down_proj_bias"), "has no tensor .*down_proj.bias'"),
        (shorter(f"{MLP}experts.down_proj_blocks"), r"has the shape \[4, 32, 1, 16\], but"),
        (shorter(f"{MLP}router.bias"), r"router.bias'.* has the shape \[4\]"),
        (with_nan_scale, "experts.1.down_proj.weight': NaN"),
        (config_of(swiglu_limit=8.0), "swiglu_limit of config.json is 8; only 7 is supported"),
        (config_of(swiglu_alpha=1.0), "swiglu_alpha of config.json is 1; only 1.702"),
        (config_of(num_local_experts=4), r"has the shape \[5, 32\].*implies \[4, 32\]"),
        (
            config_of(quantization_config={**QUANTISED, "quant_method": "gptq"}),
            "quantised as 'gptq'; of stacked experts .* only mxfp4 can be read",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    change: Callable[[Path, dict[str, np.ndarray], dict[str, Any]], None],
    sentence: str,
) -> None:
    tiny_gpt_oss(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, tensors, config)
    save_file(tensors, path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path)


def test_transforms_refuse_what_is_clamped(tmp_path: Path) -> None:
    opened = open_model(tiny_gpt_oss(tmp_path))
    with pytest.raises(ModelError, match="GptOssForCausalLM clamps its gates and ups"):
        RewrittenModel(opened, lambda line: None)
    opened.source.close()


def test_a_converted_directory_gives_the_same_bits(tmp_path: Path) -> None:
    model, out = tiny_gpt_oss(tmp_path / "model"), tmp_path / "out"
    convert(EngineConfig(model=str(model)), out, lambda line: None)
    one, other = (prompt_logits(load(path), [[5, 9, 3, 60, 2]], 3)[0] for path in (model, out))
    assert (one == other).all()


def test_gates_and_ups_in_halves_stand_either_way(tmp_path: Path) -> None:
    """Published mixtures of Qwen3-VL have inputs before outputs; transformers may write them the
    other way."""
    CASES["qwen3-vl-moe"].build().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", ".down_proj"))]:
        if tensors[name].ndim == 3:
            tensors[name] = np.ascontiguousarray(tensors[name].transpose(0, 2, 1))
    save_file(tensors, path)
    one, other = (
        prompt_logits(load(tmp_path / name), [[5, 9, 3, 60]], 4)[0] for name in ("one", "other")
    )
    assert one.tobytes() == other.tobytes()
