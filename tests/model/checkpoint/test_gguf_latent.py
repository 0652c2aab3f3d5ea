"""GGUF files of multi-head latent attention: what llama.cpp's converter writes gives the model that
the directory gives, with the heads' projections apart, as since 2025, or together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import AttentionOutput, LatentInput
from ockham.model.checkpoint.gguf.config import config_of
from ockham.model.loading import load_model
from tests.helpers.architectures import CASES, LATENT, YARN
from tests.helpers.draft_blocks import add_mtp, as_in_gguf, deepseek_names, said_by_block
from tests.helpers.drafting import make_engine
from tests.helpers.gguf_files import write_gguf
from tests.helpers.oracle import COMMON, assert_same_logits, oracle_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_latent

EQUAL = {**YARN, "mscale": 0.6, "mscale_all_dim": 0.6}
"""llama.cpp knows one of the two."""


def with_equal_scales(name: str) -> Any:
    case = CASES[name]
    if "rope_parameters" not in case.values:
        return case
    return replace(case, values={**case.values, "rope_parameters": EQUAL})


def write(
    path: Path,
    config: Mapping[str, Any],
    weights: dict[str, np.ndarray],
    *,
    apart: bool,
    kind: str = "F32",
    further: int = 0,
) -> None:
    """As the converter writes it; not `apart` as it did before it knew the absorbed form. `further`
    of the layers are blocks that draft."""
    heads, plain = config["num_attention_heads"], config["qk_nope_head_dim"]
    rotated, value, rank = (
        config[key] for key in ("qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    found = {}
    for name, tensor in weights.items():
        if apart and "kv_b_proj" in name:
            both = tensor.reshape(heads, plain + value, rank)
            keys = np.ascontiguousarray(both[:, :plain].transpose(0, 2, 1))
            found[name.replace("kv_b_proj", "k_b_proj")] = keys
            found[name.replace("kv_b_proj", "v_b_proj")] = np.ascontiguousarray(both[:, plain:])
        elif name.endswith("e_score_correction_bias"):
            found[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = tensor
        else:
            found[name] = tensor

    def metadata(writer: gguf.GGUFWriter) -> None:
        if further:
            writer.add_nextn_predict_layers(further)
        if config.get("q_lora_rank"):
            writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_kv_lora_rank(rank)
        writer.add_key_length(rank + rotated if apart else plain + rotated)
        writer.add_value_length(rank if apart else value)
        if apart:
            writer.add_key_length_mla(plain + rotated)
            writer.add_value_length_mla(value)
        writer.add_rope_dimension_count(rotated)
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_count(config["n_routed_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        if any("e_score_correction_bias" in name for name in weights):
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
            writer.add_expert_weights_norm(True)
        if (config.get("n_group") or 1) > 1:
            writer.add_expert_group_count(config["n_group"])
            writer.add_expert_group_used_count(config["topk_group"])
        if config.get("yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(16)
            writer.add_rope_scaling_yarn_log_mul(0.06)

    key_value = {**config, "num_key_value_heads": 1 if apart else heads}
    write_gguf(path, "deepseek2", key_value, found, lambda name: kind, metadata)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    "name", ["deepseek-v2-lite", "deepseek-v2-groups", "deepseek-v3", "glm4-moe-lite"]
)
def test_logits_are_those_of_transformers(name: str, apart: bool, tmp_path: Path) -> None:
    case = with_equal_scales(name)
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    config = {
        "first_k_dense_replace": 1 if "glm" in name else 0,
        "n_shared_experts": 1,
        **COMMON,
        **case.values,
        "rms_norm_eps": oracle.config.rms_norm_eps,
        "yarn": "rope_parameters" in case.values,
    }
    write(tmp_path / "m.gguf", config, load_file(tmp_path / "model.safetensors"), apart=apart)
    settings = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    told: list[str] = []
    model = load_model(EngineConfig(model=str(tmp_path / "m.gguf"), **settings), told.append)
    found = prompt_logits(model, case.prompts(), 16)
    assert_same_logits(found, oracle_logits(oracle, case.prompts()))
    assert not any("warning" in line for line in told)


def test_projections_that_stand_apart_are_held_as_they_are_stored(tmp_path: Path) -> None:
    sizes = {"rank": 64, "plain": 32, "value": 32, "query_rank": 32}
    tiny_latent(tmp_path, hidden_size=64, intermediate_size=128, **sizes)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {"n_shared_experts": 1, "routed_scaling_factor": 2.5, **config}
    weights = load_file(tmp_path / "model.safetensors")
    write(tmp_path / "m.gguf", config, weights, apart=True, kind="Q8_0")
    ops = load_model(EngineConfig(model=str(tmp_path / "m.gguf"), max_num_seqs=2)).program.ops
    inputs = [op for op in ops if isinstance(op, LatentInput)]
    outputs = [op for op in ops if isinstance(op, AttentionOutput)]
    assert {key.format for op in inputs for key in op.keys} == {"q8_0"}
    assert {value.format for op in outputs for value in op.values} == {"q8_0"}


@pytest.mark.parametrize("apart", [True, False])
def test_a_block_that_drafts_says_what_it_says_from_the_directory(
    apart: bool, tmp_path: Path
) -> None:
    """As GLM-4.7-Flash's files have it, behind the model's own layers."""
    names = deepseek_names(2)
    checkpoint = add_mtp(tiny_latent(tmp_path), names=names, like=1)
    config = json.loads((checkpoint / "config.json").read_text())
    sizes = {"n_shared_experts": 1, "routed_scaling_factor": 2.5, **config, "num_hidden_layers": 3}
    weights = as_in_gguf(load_file(checkpoint / "model.safetensors"), names, 2)
    write(tmp_path / "m.gguf", sizes, weights, apart=apart, further=1)
    tokens = [(5 * i + 3) % 97 for i in range(30)]
    states = np.random.default_rng(3).standard_normal((30, config["hidden_size"]))
    said = [
        said_by_block(
            make_engine(model, speculative_config="mtp", dtype="float32"),
            tokens,
            [states.astype(np.float32)],
        )
        for model in (checkpoint, tmp_path / "m.gguf")
    ]
    np.testing.assert_allclose(*said, atol=1e-4)
    assert np.ptp(said[0]) > 1


def test_a_file_that_lacks_a_size_is_refused() -> None:
    metadata = {"general.architecture": "deepseek2", "deepseek2.expert_count": 8}
    with pytest.raises(ModelError, match=r"its rope.dimension_count is None"):
        config_of(metadata, {"token_embd.weight": (8, 8)}, {})


def test_the_sizes_of_the_cases_differ() -> None:
    """So that no size is taken for another."""
    sizes = [LATENT[key] for key in LATENT if key.endswith(("rank", "dim"))]
    assert len(set(sizes)) == len(sizes)
