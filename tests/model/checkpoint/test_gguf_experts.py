"""Mixtures of experts in GGUF files: the same model as the checkpoint, every value kept."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.kernels.ops import Experts, Route
from ockham.model.checkpoint.gguf.blocks import READERS
from ockham.model.checkpoint.gguf.config import config_of
from ockham.model.checkpoint.gguf.strings import STRINGS
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.gguf_files import write_gguf
from tests.helpers.gpt_oss import YARN, one_by_one
from tests.helpers.oracle import COMMON, Case, assert_same_logits, oracle_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_mixtral

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES = {
    "llama": Case("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2moe": Case("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen3moe": Case("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": Case("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "gpt-oss": Case(
        "GptOss",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 16,
            "sliding_window": 9,
            "rope_parameters": YARN,
        },
    ),
}


def no_more(writer: gguf.GGUFWriter) -> None:
    pass


def add_yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(YARN["factor"])
    writer.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(YARN["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(YARN["beta_slow"])


METADATA = {"gpt-oss": add_yarn}
PROMPTS = [[5, 9, 3, 60, 2, 17, 44], [11]]


def load(path: Path, **settings: Any) -> LoadedModel:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128}
    return load_model(EngineConfig(model=str(path), **{**defaults, **settings}))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    config = {**COMMON, "rms_norm_eps": oracle.config.rms_norm_eps, **case.values}
    config["rope_theta"] = oracle.config.rope_parameters["rope_theta"]
    weights = one_by_one(load_file(tmp_path / "model.safetensors"))
    write_gguf(tmp_path / "model.gguf", name, config, weights, metadata=METADATA.get(name, no_more))
    expected = oracle_logits(oracle, case.prompts())
    told: list[str] = []
    settings = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
    model = load_model(EngineConfig(model=str(tmp_path / "model.gguf"), **settings), told.append)
    assert_same_logits(prompt_logits(model, case.prompts(), 16), expected)
    assert not any("warning" in line for line in told)


KINDS = ["F32", "F16", "BF16", "Q4_0", *READERS]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 1,
}


def tiny(
    directory: Path, type_of: Callable[[str], str], **settings: Any
) -> tuple[Path, dict[str, np.ndarray]]:
    """A GGUF file of a tiny Mixtral of 3 experts, and its weights, which model.safetensors beside
    it holds as well."""
    tiny_mixtral(directory, experts=3, **SIZES)
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    path = directory / "gguf" / "model.gguf"
    path.parent.mkdir()
    meant = write_gguf(path, "llama", config, weights, type_of, **settings)
    save_file(meant, directory / "model.safetensors")
    return path, meant


def expert_rows(model: LoadedModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values of each expert's gate and up, and of its down projection."""
    (op,) = (op for op in model.program.ops if isinstance(op, Experts))
    return [
        (
            gate_up.rows(np.arange(gate_up.out_features, dtype=np.int32)),
            down.rows(np.arange(down.out_features, dtype=np.int32)),
        )
        for gate_up, down in zip(op.gate_up, op.down, strict=True)
    ]


def check_values(model: LoadedModel, meant: dict[str, np.ndarray]) -> None:
    """Every value of the experts and of their router is the file's, to the bit."""
    block = "model.layers.0.block_sparse_moe."
    for number, (gate_up, down) in enumerate(expert_rows(model)):
        w1, w2, w3 = (meant[f"{block}experts.{number}.w{i}.weight"] for i in (1, 2, 3))
        assert (gate_up == np.concatenate([w1, w3])).all()
        assert (down == w2).all()
    (route,) = (op for op in model.program.ops if isinstance(op, Route))
    assert route.router.format == "fp32"
    assert (route.router.rows(np.arange(3, dtype=np.int32)) == meant[block + "gate.weight"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_kept_and_gives_what_it_gives_in_safetensors(
    tmp_path: Path, kind: str
) -> None:
    path, meant = tiny(tmp_path, lambda name: kind)
    expected = prompt_logits(load(tmp_path, dtype="float32"), PROMPTS, 4)
    wide = load(path, quantization="fp32")
    check_values(wide, meant)
    for found, wanted in zip(prompt_logits(wide, PROMPTS, 4), expected, strict=True):
        assert (found == wanted).all()
    native = load(path)
    held = {"Q4_0": "int4", "BF16": "bf16", **{name: each.name for name, each in READERS.items()}}
    assert set(native.weight_format.split("+")) == {held.get(kind, "fp32"), "fp32"}
    check_values(native, meant)
    # With quantised inputs a router may choose other experts than in fp32, but not than in NumPy;
    # with keys and values rounded to bf16 it may choose others than there too.
    exact = {"kv_cache_dtype": "float32"}
    plain = prompt_logits(load(path, backend="reference", **exact), PROMPTS, 4)
    for found, wanted in zip(prompt_logits(load(path, **exact), PROMPTS, 4), plain, strict=True):
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_a_router_in_fp32_stays_so_beside_bf16_in_both_kinds_of_file(tmp_path: Path) -> None:
    path, meant = tiny(tmp_path, lambda name: "BF16")
    router = "model.layers.0.block_sparse_moe.gate.weight"
    stored = {
        name: value if value.ndim == 1 or name == router else value.astype(ml_dtypes.bfloat16)
        for name, value in meant.items()
    }
    save_file(stored, tmp_path / "model.safetensors")
    one, other = load(path), load(tmp_path)
    assert one.state_dtype == other.state_dtype == "bfloat16"
    check_values(other, meant)
    assert {"bf16", "fp32"} == set(one.weight_format.split("+"))
    for found, wanted in zip(
        prompt_logits(one, PROMPTS, 4), prompt_logits(other, PROMPTS, 4), strict=True
    ):
        assert (found == wanted).all()


def test_experts_in_tensors_of_their_own_as_of_2023(tmp_path: Path) -> None:
    path, meant = tiny(tmp_path, lambda name: "Q8_0")
    reader = gguf.GGUFReader(path)
    old = gguf.GGUFWriter(tmp_path / "old.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            old.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name.endswith("_exps.weight"):
            for number, one in enumerate(tensor.data):
                name = tensor.name.replace("_exps", f".{number}")
                old.add_tensor(name, one, raw_dtype=tensor.tensor_type)
        else:
            old.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    old.write_header_to_file()
    old.write_kv_data_to_file()
    old.write_tensors_to_file()
    old.close()
    model = load(tmp_path / "old.gguf")
    check_values(model, meant)
    assert model.numerics_id == load(path).numerics_id


def test_experts_in_several_parts_and_types(tmp_path: Path) -> None:
    def type_of(name: str) -> str:
        return "Q6_K" if "w2" in name else "Q5_K"

    path, meant = tiny(tmp_path, type_of, split_max_tensors=4)
    model = load(path.parent)
    assert set(model.weight_format.split("+")) == {"q5_k", "q6_k", "fp32"}
    check_values(model, meant)


LLAMA = {"general.architecture": "llama", "llama.expert_count": 4}


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"general.architecture": "grok", "grok.expert_count": 8}, "mixture of experts 'grok'"),
        ({**LLAMA, "llama.expert_gating_func": 2}, "expert_gating_func is 2; .* by their softm"),
        ({**LLAMA, "llama.expert_weights_scale": 2.5}, "expert_weights_scale is 2.5; in this"),
        ({"general.architecture": "qwen2moe"}, "architecture 'qwen2moe' is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        config_of(metadata, {}, {})


def test_a_count_of_experts_that_is_not_the_tensors_is_refused(tmp_path: Path) -> None:
    path, _ = tiny(tmp_path, lambda name: "F32")
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["llama.expert_count"]
    field.parts[field.data[0]][0] = 4
    del reader, field
    with pytest.raises(ModelError, match=r"has the shape \[3, 256\], but .* implies \[4, 256\]"):
        load(path)


HARMONY = ["<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|endoftext|>", "a"]


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (HARMONY, {"<|call|>", "<|return|>", "<|endoftext|>"}),
        (["a", "<|start|>", "<|end|>", "<|endoftext|>"], {"<|end|>", "<|endoftext|>"}),
    ],
)
def test_the_end_of_one_of_several_messages_ends_no_answer(
    tokens: list[str], ends: set[str]
) -> None:
    listed = STRINGS()
    raw = b"".join(struct.pack("<Q", len(token)) + token.encode() for token in tokens)
    listed.read(raw, 0, len(tokens))
    metadata: dict[str, Any] = {
        "general.architecture": "gpt-oss",
        "gpt-oss.expert_count": 4,
        "tokenizer.ggml.tokens": listed,
        "tokenizer.ggml.token_type": [3 if token.startswith("<") else 1 for token in tokens],
        "tokenizer.ggml.eot_token_id": tokens.index("<|end|>"),
    }
    config = config_of(metadata, {"token_embd.weight": (len(tokens), 8)}, {})
    assert {tokens[i] for i in config["eos_token_id"]} == ends
