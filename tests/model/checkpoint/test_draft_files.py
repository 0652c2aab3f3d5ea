"""Files of trained drafters are read as they were written, and damaged ones are refused in a
sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.model.checkpoint.draft_files import (
    AcceptanceHead,
    EarlyExit,
    MedusaHeads,
    PromptTokens,
    read_acceptance,
    read_drafter,
)
from ockham.model.converting import convert
from ockham.model.hub import BUILT_IN, DRAFTERS, resolve_drafter
from ockham.model.program.description import describe, read_config

D, V, L = 8, 20, 3


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(ml_dtypes.bfloat16)


TENSORS: dict[str, dict[str, np.ndarray[Any, Any]]] = {
    "medusa": {
        f"heads.{i}.{part}": random(*shape)
        for i in range(3)
        for part, shape in (("weight", (D, D)), ("bias", (D,)))
    },
    "prompt_tokens": {"embeddings": random(4, D)},
    "early_exit": {"weight": random(D, D), "bias": random(D)},
}


def write(directory: Path, of: str, tensors: dict[str, Any] | None = None, **fields: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "method": of,
        "hidden_size": D,
        "vocab_size": V,
        "num_hidden_layers": L,
        "version": 1,
        "trained": {"steps": 7},
        **({"layers": 2} if of == "early_exit" else {}),
        **fields,
    }
    (directory / "draft.json").write_text(json.dumps(config))
    save_file(TENSORS[of] if tensors is None else tensors, directory / "draft.safetensors")
    return directory


def test_medusa_heads_are_read(tmp_path: Path) -> None:
    found = read_drafter(write(tmp_path, "medusa"))
    assert isinstance(found.parts, MedusaHeads)
    assert found.parts.count == 3
    assert found.parts.weights.dtype == np.float32
    written = TENSORS["medusa"]
    assert np.array_equal(found.parts.weights[2], written["heads.2.weight"].astype(np.float32))
    assert np.array_equal(found.parts.biases[1], written["heads.1.bias"].astype(np.float32))
    assert found.trained == {"steps": 7}


def test_prompt_tokens_are_read(tmp_path: Path) -> None:
    parts = read_drafter(write(tmp_path, "prompt_tokens")).parts
    assert isinstance(parts, PromptTokens)
    assert parts.count == 4
    written = TENSORS["prompt_tokens"]["embeddings"].astype(np.float32)
    assert np.array_equal(parts.embeddings, written)


def test_an_early_exit_is_read(tmp_path: Path) -> None:
    parts = read_drafter(write(tmp_path, "early_exit")).parts
    assert isinstance(parts, EarlyExit)
    assert parts.layers == 2
    assert np.array_equal(parts.weight, TENSORS["early_exit"]["weight"].astype(np.float32))


def test_a_drafter_of_another_target_is_refused(tmp_path: Path) -> None:
    found = read_drafter(write(tmp_path, "medusa"))
    found.check_target(D, V, L)
    with pytest.raises(ModelError, match="20 tokens and 3 layers, and this one has 8, 21 and 3"):
        found.check_target(D, V + 1, L)


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("medusa", {"version": 2}, "version 2"),
        ("medusa", {"method": "eagle"}, "method 'eagle'; known are medusa"),
        ("medusa", {"method": ["medusa"]}, "known are medusa"),
        ("medusa", {"hidden_size": "8"}, "hidden_size of .* is no size"),
        ("medusa", {"hidden_size": D + 1}, r"has the shape \[8, 8\], where \[9, 9\] is expected"),
        ("early_exit", {"layers": L}, r"must lie in \[1, 2\], got 3"),
        ("early_exit", {"layers": None}, "got None"),
    ],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, method: str, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        read_drafter(write(tmp_path, method, **fields))


@pytest.mark.parametrize(
    ("method", "tensors", "says"),
    [
        ("medusa", {"heads.1.weight": random(D, D)}, "foretells 0 tokens"),
        ("medusa", {"heads.0.weight": random(D, D)}, "no tensor 'heads.0.bias'"),
        ("early_exit", {**TENSORS["early_exit"], "more": random(2)}, "holds 'more'"),
        ("prompt_tokens", {"embeddings": np.full((2, D), np.nan, np.float32)}, "no finite number"),
        ("prompt_tokens", {"embeddings": np.zeros((2, D), np.int32)}, "has the dtype I32"),
        ("prompt_tokens", {"embeddings": np.zeros((65, D), np.float32)}, "foretells 65 tokens"),
    ],
)
def test_wrong_tensors_are_refused(
    tmp_path: Path, method: str, tensors: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        read_drafter(write(tmp_path, method, tensors))


def test_a_converted_draft_model_keeps_its_acceptance_head(tmp_path: Path) -> None:
    out = tmp_path / "packed"
    convert(EngineConfig(model="lab-drafter", quantization="int8"), out, lambda line: None)
    assert read_acceptance(out, 128) is not None


BLOCKS = [name for name, path in DRAFTERS.items() if (path / "config.json").exists()]
"""Those that are checkpoints of a block, in the layout that others publish."""


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name not in BLOCKS])
def test_built_in_drafters_fit_the_lab_model(name: str) -> None:
    found = read_drafter(resolve_drafter(name))
    lab = describe(read_config(BUILT_IN["lab"]))
    found.check_target(lab.hidden_size, lab.vocab_size, len(lab.windows))
    assert found.method == name.removeprefix("lab-").replace("-", "_")
    assert (found.directory / "README.md").exists()


@pytest.mark.parametrize("name", BLOCKS)
def test_built_in_blocks_fit_the_lab_model(name: str) -> None:
    directory, lab = DRAFTERS[name], describe(read_config(BUILT_IN["lab"]))
    told = json.loads((directory / "draft.json").read_text())
    assert told["method"] == name.removeprefix("lab-")
    assert (told["hidden_size"], told["vocab_size"]) == (lab.hidden_size, lab.vocab_size)
    assert (directory / "README.md").exists()


def test_an_unknown_drafter_is_refused() -> None:
    with pytest.raises(ModelError, match="built-in drafter: lab-medusa, lab-prompt-tokens"):
        resolve_drafter("nowhere")


def test_what_is_no_drafter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name a directory that `ockham draft train` wrote"):
        read_drafter(tmp_path)
    (tmp_path / "draft.json").write_text("[1]")
    with pytest.raises(ModelError, match="is not a JSON object"):
        read_drafter(tmp_path)


def test_an_acceptance_head_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_acceptance(tmp_path, D) is None
    tensors = {
        "weight": random(5, D),
        "bias": random(5),
        "out.weight": random(1, 5),
        "out.bias": random(1),
    }
    save_file(tensors, tmp_path / "acceptance.safetensors")
    head = read_acceptance(tmp_path, D)
    assert isinstance(head, AcceptanceHead)
    assert head.weight.shape == (5, D)
    assert head.out_weight.shape == (5,)
    assert head.out_bias == float(tensors["out.bias"][0])
    with pytest.raises(ModelError, match=r"where \[5, 9\] is expected"):
        read_acceptance(tmp_path, D + 1)
