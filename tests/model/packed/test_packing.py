"""Which format each matrix of a model gets, by what was asked and what the matrix is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import make
from ockham.kernels.ops import AttentionInput, AttentionOutput, Embed, FeedForward, Head
from ockham.model.loading import LoadedModel, load_model
from ockham.model.packed.packing import Packer, Stored
from tests.helpers.tiny import tiny_llama

WIDE = {"hidden_size": 1024, "intermediate_size": 1088, "head_dim": 64}


def load(path: Path, quantization: str | None) -> LoadedModel:
    return load_model(
        EngineConfig(model=str(path), quantization=quantization, kv_cache_memory_bytes=1 << 22)
    )


def formats(model: LoadedModel) -> dict[str, str]:
    found = {}
    for op in model.program.ops:
        if isinstance(op, Embed):
            found["embedding"] = op.table.format
        elif isinstance(op, AttentionInput):
            found["qkv"] = op.qkv.format
        elif isinstance(op, AttentionOutput):
            found["attention_output"] = op.out.format
        elif isinstance(op, FeedForward):
            found |= {"gate_up": op.gate_up.format, "down": op.down.format}
        elif isinstance(op, Head):
            found["head"] = op.out.format
    return found


def test_int4_keeps_four_bits_for_the_large_matrices_of_a_wide_model(tmp_path: Path) -> None:
    found = formats(load(tiny_llama(tmp_path, **WIDE), "int4"))
    tables = {"embedding": "int8", "head": "int8"}
    five = dict.fromkeys(("qkv", "attention_output", "down"), "q5_0")
    assert found == {**tables, **five, "gate_up": "int4"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_named_group_is_four_bits_for_all_but_the_tables(tmp_path: Path, tied: bool) -> None:
    model = load(tiny_llama(tmp_path, tie_word_embeddings=tied, **WIDE), "int4:64")
    found = formats(model)
    assert {role for role, name in found.items() if name == "int8"} == {"embedding", "head"}
    assert {name for role, name in found.items() if role not in ("embedding", "head")} == {"int4"}


def test_int4_packs_models_whose_inputs_no_group_divides(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, hidden_size=40, intermediate_size=72, head_dim=20)
    model = load(path, "int4")
    assert set(formats(model).values()) == {"int8"}


def test_the_stored_weights_are_near_those_of_the_checkpoint(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, **WIDE)
    exact, packed = load(path, "fp32"), load(path, "int4")
    ids = np.arange(64, dtype=np.int32)
    for one, other in zip(exact.program.ops, packed.program.ops, strict=True):
        for name in ("table", "qkv", "out", "gate_up", "down"):
            if not hasattr(one, name):
                continue
            wanted, found = getattr(one, name).rows(ids), getattr(other, name).rows(ids)
            limit = {"int8": 0.01, "q5_0": 0.06, "int4": 0.13}[getattr(other, name).format]
            assert np.linalg.norm(found - wanted) < limit * np.linalg.norm(wanted), name


def test_a_format_that_leaves_nothing_is_taken_for_every_role() -> None:
    packer = Packer(make("format", "bf16"), make("format", "int8"))
    for role in ("embedding", "head", "qkv", "down"):
        packing = packer.packing([Stored("BF16", ("w",))], 256, role)  # type: ignore[arg-type]
        assert packing.format.name == "int8"


@pytest.mark.parametrize("name", ["int4:48", "int4:", "int8:64", "fp32:1"])
def test_groups_that_a_format_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        make("format", name)
