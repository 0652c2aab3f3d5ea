"""An adapter is merged as PEFT defines it, and what does not fit is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.main import cli
from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.model.checkpoint.lora import MergedSource, read_adapter
from ockham.model.converting import convert
from ockham.model.program.description import describe, read_config
from ockham.model.program.weights import Part
from tests.helpers.tiny import tiny_llama

RANK, ALPHA = 3, 12
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
SHAPES = {Q: (32, 32), DOWN: (32, 48)}


def write_adapter(
    directory: Path,
    shapes: dict[str, tuple[int, int]] = SHAPES,
    metadata: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    rng = np.random.default_rng(7)
    tensors: dict[str, Floats] = {}
    for module, (outputs, inputs) in shapes.items():
        prefix = f"base_model.model.{module}.lora_"
        tensors[prefix + "A.weight"] = rng.standard_normal((RANK, inputs)).astype(np.float32)
        tensors[prefix + "B.weight"] = rng.standard_normal((outputs, RANK)).astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata)
    fields = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "base_model_name_or_path": "someone/tiny",
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def merged_by_hand(model: Path, adapter: Path) -> dict[str, Floats]:
    """W + lora_alpha / r * B A, matrix by matrix."""
    weights = load_file(model / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    for module in SHAPES:
        prefix = f"base_model.model.{module}.lora_"
        product = factors[prefix + "B.weight"].astype(np.float64) @ factors[prefix + "A.weight"]
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + ALPHA / RANK * product
    return {name: value.astype(np.float32) for name, value in weights.items()}


def convert_to(model: Path, out: Path, adapter: Path | None = None, **config: Any) -> Path:
    convert(EngineConfig(model=str(model), **config), out, lambda line: None, lora=adapter)
    return out


def packed(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def test_every_row_of_a_target_is_what_the_formula_gives(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    expected = merged_by_hand(model, adapter)
    config = read_config(model)
    source = MergedSource(model, config, describe(config), read_adapter(adapter))
    try:
        for name, value in expected.items():
            if value.ndim == 1:
                continue
            for start, stop in ((0, len(value)), (5, 14)):
                part = Part(name, value.shape, start, stop)
                rows = np.concatenate([block.copy() for block in source.rows(part)])
                np.testing.assert_allclose(rows, value[start:stop], rtol=1e-5, atol=1e-5)
    finally:
        source.close()


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_merged_model_is_the_checkpoint_merged_by_hand(
    model: Path, tmp_path: Path, quantization: str | None
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    by_hand = tiny_llama(tmp_path / "by_hand")
    save_file(merged_by_hand(model, adapter), by_hand / "model.safetensors")
    merged = packed(convert_to(model, tmp_path / "merged", adapter, quantization=quantization))
    expected = packed(convert_to(by_hand, tmp_path / "expected", quantization=quantization))
    plain = packed(convert_to(model, tmp_path / "plain", quantization=quantization))
    assert merged.keys() == expected.keys()
    changed = 0
    for name, value in expected.items():
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if value.dtype == np.float32 else {"atol": 1}
        np.testing.assert_allclose(
            merged[name].astype(np.float32), value.astype(np.float32), **tolerance
        )
        changed += not np.array_equal(merged[name], plain[name])
    assert changed >= len(SHAPES)


def test_a_bf16_model_is_rounded_once_after_the_sum(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", torch_dtype="bfloat16")
    path = model / "model.safetensors"
    save_file({n: v.astype(ml_dtypes.bfloat16) for n, v in load_file(path).items()}, path)
    adapter = write_adapter(tmp_path / "adapter")
    out = convert_to(model, tmp_path / "out", adapter)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["plain"] == "bf16"
    assert config["quantization_config"]["adapter"]["matrices"] == len(SHAPES)
    merged = merged_by_hand(model, adapter)[f"{DOWN}.weight"].astype(ml_dtypes.bfloat16)
    found = np.sort(packed(out)[f"{DOWN}.weight/weight"].astype(np.float32), axis=None)
    assert np.mean(found == np.sort(merged.astype(np.float32), axis=None)) > 0.99


def test_an_adapter_of_zeros_changes_nothing(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_alpha=0)
    merged, plain = convert_to(model, tmp_path / "a", adapter), convert_to(model, tmp_path / "b")
    digests = [
        json.loads((out / "config.json").read_text())["quantization_config"]["weights"]
        for out in (merged, plain)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("peft_type", "IA3", "of type 'IA3'; only LORA"),
        ("use_rslora", True, "sets use_rslora to True, which is not supported"),
        ("use_dora", True, "sets use_dora to True, which is not supported"),
        ("modules_to_save", ["lm_head"], "sets modules_to_save to"),
        ("rank_pattern", {"q_proj": 4}, "sets rank_pattern to"),
        ("fan_in_fan_out", True, "sets fan_in_fan_out to True"),
        ("bias", "all", "sets bias to 'all'; only 'none'"),
        ("init_lora_weights", "pissa", "changes the base model too"),
        ("r", 0, "must be a positive rank, not 0"),
        ("r", 5, "but its rank is 5"),
        ("lora_alpha", "16", "is no number, but '16'"),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, option: str, value: Any, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_adapter(write_adapter(tmp_path / "adapter", **{option: value}))


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name the directory of a PEFT adapter"):
        read_adapter(tmp_path / "nowhere")
    adapter = write_adapter(tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    one = f"base_model.model.{Q}.lora_B.weight"
    save_file({name: value for name, value in tensors.items() if name != one}, path)
    with pytest.raises(ModelError, match=f"no lora_B for '{Q}.weight'"):
        read_adapter(adapter)
    save_file({**tensors, f"base_model.model.{Q}.lora_magnitude_vector": np.ones(3)}, path)
    with pytest.raises(ModelError, match="is no factor of a matrix"):
        read_adapter(adapter)
    save_file({}, path)
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(adapter)
    path.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="safetensors files only"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({Q: (32, 24)}, r"as a matrix of shape \[32, 24\], but the model's has \[32, 32\]"),
        ({"model.layers.9.self_attn.q_proj": (32, 32)}, "does not have: it is of another base"),
        ({"model.layers.0.mlp.experts.0.w1": (32, 32)}, "does not have: it is of another base"),
        ({"model.norm": (32, 1)}, r"the model's has \[32\]"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    model: Path, tmp_path: Path, shapes: dict[str, tuple[int, int]], sentence: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", shapes)
    with pytest.raises(ModelError, match=sentence):
        convert_to(model, tmp_path / "out", adapter)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_tensor_that_the_model_does_not_use_is_no_target(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # stored, and yet tied
    save_file(tensors, model / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", {"lm_head": (97, 32)})
    with pytest.raises(ModelError, match=r"'lm_head.weight', which the model does not use"):
        convert_to(model, tmp_path / "out", adapter)


def test_the_digest_of_the_base_decides_where_the_adapter_has_it(
    model: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    fits = write_adapter(tmp_path / "fits", metadata={"base_sha256": digest})
    convert_to(model, tmp_path / "out", fits)
    other = write_adapter(tmp_path / "other", metadata={"base_sha256": "0" * 64})
    with pytest.raises(ModelError, match="was trained on someone/tiny with weights of SHA-256"):
        convert_to(model, tmp_path / "refused", other)


def test_what_was_converted_already_is_refused(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="was converted already"):
        convert_to(convert_to(model, tmp_path / "once"), tmp_path / "twice", adapter)


def test_the_command_line_merges_and_refuses_in_a_sentence(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    arguments = ["convert", str(model), str(tmp_path / "out"), "--lora"]
    done = CliRunner().invoke(cli, [*arguments, str(adapter)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "config.json").exists()
    refused = CliRunner().invoke(cli, [*arguments, "no-such-adapter"])
    assert refused.exit_code != 0
    assert "there is no directory 'no-such-adapter'" in refused.output
