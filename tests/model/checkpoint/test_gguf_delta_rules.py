"""Models with gated delta rules in GGUF files: what llama.cpp's converter makes of their tensors is
the model of the directory, quantised or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.kernels.ops import GatedDelta
from ockham.model import converting
from ockham.model.loading import LoadedModel, load_model
from tests.helpers.architectures import CASES
from tests.helpers.draft_blocks import MTP, add_mtp, as_in_gguf, said_by_block
from tests.helpers.drafting import make_engine
from tests.helpers.gguf_files import write_gguf
from tests.helpers.gpt_oss import one_by_one
from tests.helpers.oracle import COMMON, Case, assert_same_logits, oracle_logits
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_qwen3_5

SETTINGS: dict[str, Any] = {"max_num_seqs": 8, "block_size": 4, "max_model_len": 128}
TAKING_TURNS = {"linear_num_value_heads": 6, "linear_value_head_dim": 12}
FILES: dict[str, tuple[str, Case]] = {
    "qwen3.5": ("qwen35", CASES["qwen3.5"]),
    "qwen3.5-moe": (
        "qwen35moe",
        replace(CASES["qwen3.5-moe"], values={**CASES["qwen3.5-moe"].values, **TAKING_TURNS}),
    ),
    "qwen3-next": (
        "qwen3next",
        replace(CASES["qwen3-next"], values={**CASES["qwen3-next"].values, "mlp_only_layers": []}),
    ),
}


def metadata(
    config: Mapping[str, Any], kinds: list[str] | None = None, further: int = 0
) -> Callable[[gguf.GGUFWriter], None]:
    """What the converter says of delta rules. `kinds` are those of layers that come at no
    interval, `further` counts layers that predict further tokens."""

    def write(writer: gguf.GGUFWriter) -> None:
        heads = config["linear_num_value_heads"]
        writer.add_ssm_conv_kernel(config.get("linear_conv_kernel_dim", 4))
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(config["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(heads)
        writer.add_ssm_inner_size(heads * config["linear_value_head_dim"])
        writer.add_full_attention_interval(4)
        rotated = config["head_dim"] * config.get("partial_rotary_factor", 0.25)
        writer.add_rope_dimension_count(int(rotated))
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        if further:
            writer.add_nextn_predict_layers(further)
            writer.add_block_count(config["num_hidden_layers"] + further)
        if kinds is not None:
            recurrent = [kind == "linear_attention" for kind in kinds]
            writer.add_array(f"{writer.arch}.attention.recurrent_layers", recurrent)

    return write


def in_turns(value: np.ndarray, axis: int, config: Mapping[str, Any], width: int) -> np.ndarray:
    """Value heads that stand together by the key head that they read, one of each in turn."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    shape = value.shape
    cut = (*shape[:axis], keys, heads // keys, width, *shape[axis + 1 :])
    return np.ascontiguousarray(value.reshape(cut).swapaxes(axis, axis + 1)).reshape(shape)


def converted(
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    tiled: bool,
    fused: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors as llama.cpp's converter (conversion/qwen.py) writes them; where `fused`, the
    inputs of Qwen3-Next as it wrote them at first."""
    dk, dv = config["linear_key_head_dim"], config["linear_value_head_dim"]
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    keys, each = groups * dk, heads // groups

    def turned(value: np.ndarray, axis: int = 0, width: int = 1) -> np.ndarray:
        return in_turns(value, axis, config, width) if tiled else value

    for name, value in weights.items():
        prefix, _, own = name.partition("linear_attn.")
        block = f"blk.{prefix.split('.')[2]}." if own else ""
        if own.startswith(("in_proj_qkv.", "conv1d.")):
            channels = value.reshape(len(value), -1)
            values = turned(channels[2 * keys :], 0, dv)
            end = "attn_qkv" if own.startswith("in") else "ssm_conv1d"
            yield f"{block}{end}.weight", np.concatenate([channels[: 2 * keys], values])
        elif own == "in_proj_qkvz.weight" and not fused:
            by_head = value.reshape(groups, -1, value.shape[1])
            cuts = np.cumsum([dk, dk, each * dv])
            q, k, v, z = (p.reshape(-1, value.shape[1]) for p in np.split(by_head, cuts, axis=1))
            yield f"{block}attn_qkv.weight", np.concatenate([q, k, v])
            yield f"{block}attn_gate.weight", z
        elif own == "in_proj_qkvz.weight":
            yield f"{block}ssm_in.weight", value
        elif own == "in_proj_ba.weight":
            yield f"{block}ssm_ba.weight", value
        elif own == "in_proj_z.weight":
            yield f"{block}attn_gate.weight", turned(value, 0, dv)
        elif own in ("in_proj_a.weight", "in_proj_b.weight"):
            yield f"{block}ssm_{'alpha' if '_a' in own else 'beta'}.weight", turned(value)
        elif own == "A_log":
            yield f"{block}ssm_a", turned(-np.exp(value))
        elif own == "dt_bias":
            yield f"{block}ssm_dt.bias", turned(value)
        elif own == "out_proj.weight":
            yield f"{block}ssm_out.weight", turned(value, 1, dv)
        elif own == "norm.weight":
            yield f"{block}ssm_norm.weight", value
        elif name.endswith("norm.weight"):
            yield name, value + np.float32(1)
        else:
            yield name, value


def load(path: Path, told: list[str] | None = None) -> LoadedModel:
    tell = (lambda line: None) if told is None else told.append
    return load_model(EngineConfig(model=str(path), **SETTINGS), tell)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, fused: bool) -> None:
    architecture, case = FILES[name]
    if fused and architecture != "qwen3next":
        pytest.skip("only Qwen3-Next was ever written so")
    oracle = case.build()
    oracle.save_pretrained(tmp_path)
    config = {**COMMON, **case.values, "rms_norm_eps": oracle.config.rms_norm_eps}
    config["rope_theta"] = oracle.config.rope_parameters["rope_theta"]
    weights = dict(
        converted(
            one_by_one(load_file(tmp_path / "model.safetensors")),
            config,
            tiled=architecture != "qwen3next",
            fused=fused,
        )
    )
    kinds = config.pop("layer_types", None)
    about = metadata(config, kinds)
    write_gguf(tmp_path / "m.gguf", architecture, config, weights, metadata=about)
    told: list[str] = []
    found = prompt_logits(load(tmp_path / "m.gguf", told), case.prompts(), 16)
    assert_same_logits(found, oracle_logits(oracle, case.prompts()))
    assert not any("warning" in line for line in told)


WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "key_dim": 32,
    "value_dim": 64,
    "value_heads": 8,
}


def wide(directory: Path, kind: str, further: int = 0) -> tuple[Path, dict[str, np.ndarray]]:
    """A file whose matrices are of a type, and what its tensors are worth."""
    tiny_qwen3_5(directory, kinds=("linear_attention", "full_attention"), **WIDE)
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    about = metadata(config, config.pop("layer_types"), further)

    def told(writer: gguf.GGUFWriter) -> None:
        about(writer)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26))])
        writer.add_token_scores([0.0] * 29)
        writer.add_token_types([2, 3, 3, *([1] * 26)])

    tensors = dict(converted(weights, config, tiled=True))
    extra = {f"blk.2.nextn.{name}.weight": np.ones(4, np.float32) for name in ("enorm", "hnorm")}

    def type_of(name: str) -> str:
        return "F32" if "conv1d" in name else kind

    path = directory / "m.gguf"
    meant = write_gguf(path, "qwen35", config, tensors, type_of, told, extra if further else None)
    return path, meant


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_quantised_heads_are_kept_to_the_bit(tmp_path: Path, kind: str) -> None:
    """A block of 256 holds columns of several value heads, which no reordering could keep."""
    path, meant = wide(tmp_path, kind)
    (op,) = (op for op in load(path).program.ops if isinstance(op, GatedDelta))
    assert op.tiled
    names = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha")
    inputs = np.concatenate([meant[f"blk.0.{name}.weight"] for name in names])
    assert (op.inputs.rows(np.arange(len(inputs), dtype=np.int32)) == inputs).all()
    assert (op.out.rows(np.arange(256, dtype=np.int32)) == meant["blk.0.ssm_out.weight"]).all()
    assert (op.decay == meant["blk.0.ssm_a"]).all()


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    path, _ = wide(tmp_path, "F32", further=1)
    told: list[str] = []
    assert load(path, told).description.layers == 2
    assert not any("warning" in line for line in told)


def test_a_file_is_converted_with_the_order_of_its_heads(tmp_path: Path) -> None:
    path, _ = wide(tmp_path / "file", "Q4_K")
    converting.convert(EngineConfig(model=str(path)), tmp_path / "out", lambda line: None)
    prompts = [[5, 9, 3, 60, 2, 7, 8, 9, 11], [11]]
    for one, other in zip(
        *(prompt_logits(load(each), prompts, 4) for each in (path, tmp_path / "out")), strict=True
    ):
        assert one.tobytes() == other.tobytes()


def test_heads_in_turn_take_no_adapter(tmp_path: Path) -> None:
    """Whose heads stand in the order of the directory."""
    path, _ = wide(tmp_path, "F32")
    assert not any("linear_attn" in name for name in load(path).program.parts)


def test_a_block_that_drafts_says_what_it_says_from_the_directory(tmp_path: Path) -> None:
    """It stands behind the model's layers, with their names and those of `nextn`."""
    checkpoint = add_mtp(tiny_qwen3_5(tmp_path), like=1)
    config = json.loads((checkpoint / "config.json").read_text())
    weights = as_in_gguf(load_file(checkpoint / "model.safetensors"), MTP, 3)
    about = metadata(config, config.pop("layer_types"), further=1)
    tensors = dict(converted(weights, config, tiled=True))
    # So that the names of the block's layer are known, too; `about` says it again.
    in_all = {**config, "num_hidden_layers": 4}

    def told(writer: gguf.GGUFWriter) -> None:
        about(writer)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<{i}>" for i in range(len(tensors["lm_head.weight"]))])
        writer.add_token_scores([0.0] * len(tensors["lm_head.weight"]))
        writer.add_token_types([2, 3, 3, *[1] * (len(tensors["lm_head.weight"]) - 3)])

    write_gguf(tmp_path / "m.gguf", "qwen35", in_all, tensors, metadata=told)
    config_of_file = EngineConfig(model=str(tmp_path / "m.gguf"))
    converting.convert(config_of_file, tmp_path / "out", lambda line: None)
    tokens = [(5 * i + 3) % 97 for i in range(30)]
    states = np.random.default_rng(3).standard_normal((30, config["hidden_size"]))
    said = [
        said_by_block(
            make_engine(model, speculative_config="mtp", dtype="float32"),
            tokens,
            [states.astype(np.float32)],
        )
        for model in (checkpoint, tmp_path / "m.gguf", tmp_path / "out")
    ]
    np.testing.assert_allclose(*said[:2], atol=1e-4)
    assert (said[1] == said[2]).all()
    assert np.ptp(said[0]) > 1
