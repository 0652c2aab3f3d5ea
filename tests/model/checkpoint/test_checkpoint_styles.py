"""One model, however its checkpoint is written: old and new keys, names, shards and dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.model.loading import load_model
from tests.helpers.oracle import (
    COMMON,
    Case,
    assert_same_logits,
    load,
    longrope,
    oracle_logits,
    randomise,
)
from tests.helpers.steps import prompt_logits

GEMMA3 = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "sliding_window": 7,
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def save(case: Case, directory: Path) -> Any:
    oracle = case.build()
    oracle.save_pretrained(directory)
    return oracle


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def check(case: Case, directory: Path, oracle: Any, **settings: Any) -> None:
    model = load(directory, **{"max_model_len": case.max_model_len, **settings})
    expected = oracle_logits(oracle, case.prompts())
    assert_same_logits(prompt_logits(model, case.prompts(), 512), expected)


def test_rope_theta_and_rope_scaling_are_read_as_before_transformers_5(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    case = Case("Llama", {"rope_parameters": {"rope_theta": 5e5, **rope}})
    oracle = save(case, tmp_path)

    def as_before(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=5e5, rope_scaling=rope, torch_dtype=config.pop("dtype"))

    edit_config(tmp_path, as_before)
    check(case, tmp_path, oracle)


def test_gemma_3_configs_as_on_the_hub_say_little(tmp_path: Path) -> None:
    case = Case("Gemma3Text", GEMMA3, model="Gemma3ForCausalLM")
    oracle = save(case, tmp_path)

    def as_on_the_hub(config: dict[str, Any]) -> None:
        for key in ("rope_parameters", "layer_types", "tie_word_embeddings", "hidden_activation"):
            del config[key]
        config.update(
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            sliding_window_pattern=6,
        )

    edit_config(tmp_path, as_on_the_hub)
    check(case, tmp_path, oracle)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_gemma_3_is_served_and_its_vision_part_ignored(
    tmp_path: Path, prefix: str
) -> None:
    case = Case("Gemma3Text", GEMMA3, model="Gemma3ForCausalLM")
    text = {key: value for key, value in {**COMMON, **GEMMA3}.items() if key != "pad_token_id"}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text),
        vision_config=transformers.SiglipVisionConfig(**vision),
        mm_tokens_per_image=1,
        image_token_index=5,
    )
    torch.manual_seed(0)
    oracle = randomise(
        transformers.Gemma3ForConditionalGeneration._from_config(
            config, attn_implementation="eager"
        ).eval(),
        0,
    )
    oracle.save_pretrained(tmp_path)

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            for known in ("language_model.model.", "model.language_model."):
                if name.startswith(known):
                    tensors[prefix + name.removeprefix(known)] = tensors.pop(name)

    edit_weights(tmp_path, rename)
    prompts = [[7 if token == 5 else token for token in prompt] for prompt in case.prompts()]
    told: list[str] = []
    settings = {"dtype": "float32", "max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path), **settings), told.append)
    expected = oracle_logits(oracle, prompts)
    assert_same_logits(prompt_logits(model, prompts, 512), expected)
    assert any("only the text part of Gemma3ForConditionalGeneration" in line for line in told)
    assert not any("warning" in line for line in told)


@pytest.mark.parametrize(
    ("family", "block", "names"),
    [
        ("Mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
        ("Qwen2Moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
        ("Qwen3Moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_experts_may_be_stored_one_by_one_or_stacked(
    tmp_path: Path, family: str, block: str, names: tuple[str, str, str]
) -> None:
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
    case = Case(family, {"num_local_experts": 4} if family == "Mixtral" else sizes)
    oracle = save(case, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert f"model.layers.0.{block}.experts.3.{names[0]}.weight" in stored

    def stack(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(4):
            old, new = f"model.layers.{layer}.{block}.", f"model.layers.{layer}.mlp."
            gate, up, down = (
                [tensors.pop(f"{old}experts.{n}.{name}.weight") for n in range(4)] for name in names
            )
            both = [np.concatenate(pair) for pair in zip(gate, up, strict=True)]
            tensors[new + "experts.gate_up_proj"] = np.stack(both)
            tensors[new + "experts.down_proj"] = np.stack(down)
            for name in [name for name in tensors if name.startswith(old)]:
                tensors[new + name.removeprefix(old)] = tensors.pop(name)

    check(case, tmp_path, oracle)
    edit_weights(tmp_path, stack)
    check(case, tmp_path, oracle)


def test_longrope_uses_the_long_factors_for_all_texts_if_long_ones_are_served(
    tmp_path: Path,
) -> None:
    short, long = longrope(0, 3)
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    case = Case(
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 1e4, **rope},
        },
    )
    oracle = save(case, tmp_path)
    prompts = [prompt for prompt in case.prompts() if len(prompt) > 16]
    expected = oracle_logits(oracle, prompts)
    model = load(tmp_path, max_model_len=128)
    assert_same_logits(prompt_logits(model, prompts, 7), expected)
    assert load(tmp_path, max_model_len=16).numerics_id != model.numerics_id


def test_dynamic_ntk_is_fixed_for_the_longest_text_that_is_served(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    case = Case("Llama", {"max_position_embeddings": 32, "rope_parameters": rope}, longest=100)
    oracle = save(case, tmp_path)
    prompts = case.prompts()[:1]
    model = load(tmp_path, max_model_len=100)
    assert_same_logits(prompt_logits(model, prompts, 512), oracle_logits(oracle, prompts))


def test_shards_hold_the_same_model_under_the_same_numerics_id(tmp_path: Path) -> None:
    case = Case("Llama")
    oracle = save(case, tmp_path / "single")
    oracle.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    check(case, tmp_path / "sharded", oracle)
    single, sharded = load(tmp_path / "single"), load(tmp_path / "sharded")
    assert single.numerics_id == sharded.numerics_id


def test_one_changed_weight_changes_the_numerics_id(tmp_path: Path) -> None:
    save(Case("Llama"), tmp_path)
    before = load(tmp_path).numerics_id

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.3.mlp.down_proj.weight"][-1, -1] += 1e-3

    edit_weights(tmp_path, change)
    assert load(tmp_path).numerics_id != before


def test_float16_is_widened_exactly_and_bfloat16_is_kept(tmp_path: Path) -> None:
    save(Case("Llama"), tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    for dtype, expected in ((np.float16, "fp32"), (ml_dtypes.bfloat16, "bf16")):

        def convert(tensors: dict[str, np.ndarray], dtype: Any = dtype) -> None:
            tensors.update({key: value.astype(dtype) for key, value in tensors.items()})

        edit_weights(tmp_path, convert)
        stored = load_file(tmp_path / "model.safetensors")[name]
        model = load(tmp_path, dtype="auto")
        out = next(op.out for op in model.program.ops if type(op).__name__ == "AttentionOutput")
        assert model.weight_format == expected
        assert (out.rows(np.arange(out.out_features)) == stored.astype(np.float32)).all()
        assert model.state_dtype == ("bfloat16" if expected == "bf16" else "float32")


def test_unknown_tensors_are_warned_of_and_rotary_buffers_are_not(tmp_path: Path) -> None:
    save(Case("Llama"), tmp_path)
    settings = EngineConfig(model=str(tmp_path), max_model_len=64)

    def add(name: str) -> list[str]:
        edit_weights(tmp_path, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
        told: list[str] = []
        load_model(settings, told.append)
        return [line for line in told if "warning" in line]

    assert add("model.layers.0.self_attn.rotary_emb.inv_freq") == []
    (warning,) = add("model.layers.0.self_attn.q_proj.bias")
    assert "'model.layers.0.self_attn.q_proj.bias'" in warning


def test_end_tokens_are_those_of_both_configurations(tmp_path: Path) -> None:
    save(Case("Llama"), tmp_path)
    generation = {"eos_token_id": [2, 9], "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    model = load(tmp_path)
    assert model.eos_token_ids == (2, 9)
    assert model.generation_config["temperature"] == 0.6
