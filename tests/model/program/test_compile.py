"""Breakpoints stand where techniques expect them, and packed matrices hold what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ockham.kernels.ops import Attend, AttentionInput, Experts, FeedForward, Head, Route
from tests.helpers.oracle import Case, load


def test_every_breakpoint_stands_before_its_operation(tmp_path: Path) -> None:
    values = {
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [1],
    }
    Case("Qwen2Moe", values).build().save_pretrained(tmp_path)
    program = load(tmp_path).program
    ops, at = program.ops, program.breakpoints
    for layer in range(4):
        assert isinstance(ops[at[f"layer.{layer}.before"]], AttentionInput)
        assert isinstance(ops[at[f"layer.{layer}.pattern"]], Attend)
        last = ops[at[f"layer.{layer}.after"] - 1]
        assert isinstance(last, FeedForward if layer == 1 else Experts)
        assert last.layer == layer
        if layer == 1:
            assert f"layer.{layer}.router" not in at
        else:
            assert isinstance(ops[at[f"layer.{layer}.router"]], Route)
            assert isinstance(ops[at[f"layer.{layer}.experts"]], Experts)
    assert isinstance(ops[at["head"]], Head)
    assert at["head"] == len(ops) - 1 == at["layer.3.after"]


def test_projections_are_packed_in_the_order_of_the_contract(tmp_path: Path) -> None:
    Case("Qwen2").build().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    model = load(tmp_path)
    op = model.program.ops[1]
    assert isinstance(op, AttentionInput)
    assert op.bias is not None
    layer = "model.layers.0.self_attn."
    weights = [stored[f"{layer}{name}_proj.weight"] for name in "qkv"]
    ids = np.arange(op.qkv.out_features, dtype=np.int32)
    assert (op.qkv.rows(ids) == np.concatenate(weights)).all()
    assert (op.bias == np.concatenate([stored[f"{layer}{n}_proj.bias"] for n in "qkv"])).all()
    ropes = {id(o.rope) for o in model.program.ops if isinstance(o, AttentionInput)}
    assert len(ropes) == 1


def test_tied_embeddings_are_held_once(tmp_path: Path) -> None:
    Case("Llama", {"tie_word_embeddings": True}).build().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.program.ops[0].table is model.program.ops[-1].out


def test_gemma_norms_hold_one_plus_the_stored_weight(tmp_path: Path) -> None:
    Case("Gemma2", {"head_dim": 8}).build().save_pretrained(tmp_path)
    head = load(tmp_path).program.ops[-1]
    stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    assert (head.norm.weight == stored + np.float32(1)).all()
