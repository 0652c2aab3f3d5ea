"""A converted directory is the model that quantising at load gives, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.kernels import backends
from ockham.kernels.native import core
from ockham.kernels.ops import Norm
from ockham.model import converting
from ockham.model.loading import LoadedModel, load_model
from ockham.text.tokenizer import Tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.oracle import Case
from tests.helpers.prequantised import awq, quantise_checkpoint, random_matrix
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PROMPTS = [[5, 9, 3, 60, 2, 7], [11], [3, 4]]


def load(path: Path, **settings: Any) -> LoadedModel:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64}
    return load_model(EngineConfig(model=str(path), **{**defaults, **settings}))


def convert(source: Path, out: Path, quantization: str | None = None) -> Path:
    converting.convert(
        EngineConfig(model=str(source), quantization=quantization), out, lambda line: None
    )
    return out


def set_layout(path: Path, layout: str | None) -> None:
    """Change the name of the layout in a file of weights; None for none, as earlier versions
    wrote."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"].pop("layout")
    if layout is not None:
        header["__metadata__"]["layout"] = layout
    changed = json.dumps(header).encode().ljust(size)
    assert len(changed) == size
    path.write_bytes(data[:8] + changed + data[8 + size :])


def arrays(model: LoadedModel) -> list[bytes]:
    """The bytes of everything that stands in a program."""
    found = []

    def visit(value: Any) -> None:
        if isinstance(value, np.ndarray):
            found.append(value.tobytes())
        elif isinstance(value, Norm):
            found.append(value.weight.tobytes())
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each)
        elif hasattr(value, "arrays"):
            found.extend(value.arrays[name].tobytes() for name in sorted(value.arrays))

    for op in model.program.ops:
        for name in op.__slots__:
            visit(getattr(op, name))
    return found


def check_same(found: LoadedModel, expected: LoadedModel) -> None:
    assert found.numerics_id == expected.numerics_id
    assert found.weight_format == expected.weight_format
    assert found.state_dtype == expected.state_dtype
    assert (found.weight_bytes, found.parameters) == (expected.weight_bytes, expected.parameters)
    logits, wanted = prompt_logits(found, PROMPTS, 4), prompt_logits(expected, PROMPTS, 4)
    for one, other in zip(logits, wanted, strict=True):
        assert one.tobytes() == other.tobytes()
    assert arrays(found) == arrays(expected)


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8", "int4", "int4:32", None])
def test_a_converted_model_is_bit_for_bit_what_quantising_at_load_gives(
    tmp_path: Path, quantization: str | None
) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    convert(tmp_path / "model", tmp_path / "out", quantization)
    found = load(tmp_path / "out")
    check_same(found, load(tmp_path / "model", quantization=quantization))
    if quantization is not None:  # it may be named again
        assert load(tmp_path / "out", quantization=quantization).numerics_id == found.numerics_id


@pytest.mark.parametrize("quantization", ["bf16", "int4", None])
def test_a_directory_of_rows_is_for_the_reference_backend(
    tmp_path: Path, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    monkeypatch.setattr(backends, "core", None)  # as where nothing was compiled
    plain = convert(tmp_path / "model", tmp_path / "plain", quantization)
    found = load(plain)
    assert found.backend.name == "reference"
    check_same(found, load(tmp_path / "model", quantization=quantization))


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_a_directory_in_another_backends_layout_is_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    out = convert(tmp_path / "model", tmp_path / "out", "int8")
    with pytest.raises(ConfigError, match="in the layout 'cpu-1', and this backend reads 'rows-1'"):
        load(out, backend="reference")


@pytest.mark.parametrize("layout", ["cpu-2", "cuda-1"])
def test_a_layout_that_nothing_here_reads_is_refused(tmp_path: Path, layout: str) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    out = convert(tmp_path / "model", tmp_path / "out", "int8")
    set_layout(out / "model.safetensors", layout)
    with pytest.raises(ModelError, match=f"in the layout '{layout}', which this Ockham does not"):
        load(out)


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_a_directory_that_names_no_layout_is_read_as_what_it_was_then(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    out = convert(tmp_path / "model", tmp_path / "out", "int4")
    expected = load(out)
    set_layout(out / "model.safetensors", None)
    check_same(load(out), expected)


@pytest.mark.parametrize(
    "case",
    [
        Case("Gemma2", {"head_dim": 16, "sliding_window": 7}),
        Case("Phi3", {"sliding_window": 13}),
        Case("Qwen2", {"tie_word_embeddings": True}),
    ],
    ids=lambda case: case.family,
)
def test_offsets_of_norms_fused_tensors_biases_and_tied_heads_survive(
    tmp_path: Path, case: Case
) -> None:
    case.build().save_pretrained(tmp_path / "model")
    check_same(
        load(convert(tmp_path / "model", tmp_path / "out", "int8")),
        load(tmp_path / "model", quantization="int8"),
    )


def test_stacked_experts_survive(tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    Case("Qwen3Moe", {**sizes, "head_dim": 16}).build().save_pretrained(tmp_path / "model")
    check_same(
        load(convert(tmp_path / "model", tmp_path / "out", "int8")),
        load(tmp_path / "model", quantization="int8"),
    )


def test_a_quantised_checkpoint_is_converted_as_it_is(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    quantise_checkpoint(
        tmp_path / "model",
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
        awq,
        lambda rows, columns, seed: random_matrix(rows, columns, 32, seed, symmetric=False),
    )
    found = load(convert(tmp_path / "model", tmp_path / "out"))
    assert found.weight_format == "int4+bf16"
    check_same(found, load(tmp_path / "model"))


def letters(writer: Any) -> None:
    """The metadata of a tokenizer of single letters."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26))])
    writer.add_token_scores([0.0] * 29)
    writer.add_token_types([2, 3, 3, *([1] * 26)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def test_gguf_block_types_and_stacks_of_them_survive(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    tiny_llama(tmp_path, **sizes)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    kinds = {"v_proj": "Q6_K", "o_proj": "Q8_0", "up_proj": "Q4_0", "down_proj": "Q5_K"}

    def type_of(name: str) -> str:
        return kinds.get(name.split(".")[-2], "Q4_K")

    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", config, weights, type_of, metadata=letters)
    out = convert(path, tmp_path / "out")
    check_same(load(out), load(path))
    assert load(out).program.ops[1].qkv.format == "q4_k+q6_k"
    assert load(out).program.ops[4].gate_up.format == "q4_k+int4"
    wide = convert(path, tmp_path / "wide", "fp32")
    check_same(load(wide), load(path, quantization="fp32"))


def test_a_gguf_file_is_converted_with_what_it_knows(tmp_path: Path) -> None:
    case = Case("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7})
    oracle = case.build()
    weights = {n: p.detach().numpy() for n, p in oracle.state_dict().items()}
    del weights["lm_head.weight"]
    config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "sliding_window": 7,
    }

    path = tmp_path / "model.gguf"
    write_gguf(path, "gemma2", config, weights, metadata=letters)
    out = convert(path, tmp_path / "out")
    check_same(load(out), load(path))
    assert load(out).eos_token_ids == load(path).eos_token_ids == (2,)
    assert Tokenizer(out).encode("abc") == Tokenizer(path).encode("abc")
    assert Tokenizer(out).bos_token_id == 1


def test_the_command_writes_a_directory_that_runs(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", tokenizer=True, **SIZES)
    arguments = ["convert", str(tmp_path / "model"), str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*arguments, "--quantization", "int4", "--group-size", "32"])
    assert result.exit_code == 0, result.output
    assert "iB of weights to" in result.output
    check_same(load(tmp_path / "out"), load(tmp_path / "model", quantization="int4:32"))
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= names
    again = CliRunner().invoke(cli, [*arguments, "--quantization", "int4"])
    assert "is not an empty directory" in again.output
    wrong = CliRunner().invoke(cli, [*arguments, "--group-size", "32"])
    assert "--group-size is for --quantization fp4 or fp8 or int4 or" in wrong.output


def test_other_weights_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    out = convert(tmp_path / "model", tmp_path / "out", "int4")
    with pytest.raises(ConfigError, match="was converted to int4; it cannot be loaded as int8"):
        load(out, quantization="int8")
    with pytest.raises(ConfigError, match="was converted already"):
        convert(out, tmp_path / "other", "int8")


def test_what_cannot_be_packed_leaves_no_model_behind(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **{**SIZES, "intermediate_size": 80})
    with pytest.raises(
        ModelError, match=r"down_proj\.weight': 80 inputs cannot be cut into groups"
    ):
        convert(tmp_path / "model", tmp_path / "out", "int4:64")
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(ModelError, match=r"down_proj\.weight': 80 inputs cannot be cut into"):
        load(tmp_path / "model", quantization="int4:64")


def test_a_conversion_that_breaks_off_is_not_taken_for_a_model(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    save_file(weights, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight': NaN or infinity"):
        convert(tmp_path / "model", tmp_path / "out", "int4")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())  # and so the next attempt may write there


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_directories_of_another_version_or_damaged_are_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    out = convert(tmp_path / "model", tmp_path / "out", "int4:64")
    weights = out / "model.safetensors"
    whole = weights.read_bytes()

    os.truncate(weights, len(whole) - 1)
    with pytest.raises(ModelError, match=r"tensor 'model\.norm\.weight/vector' .* is truncated"):
        load(out)
    key = "model.layers.1.mlp.down_proj.weight"
    for change, sentence in (
        (lambda h: h.pop(f"{key}/scale"), f"have no tensor '{key}/scale'; convert"),
        (lambda h: h.pop("model.norm.weight/vector"), "have no tensor 'model.norm.weight/vector'"),
        (lambda h: h[f"{key}/scale"].update(dtype="BF16"), f"'{key}/scale' of .* is BF16"),
        (lambda h: h.pop("__metadata__"), "does not say what its matrices are"),
    ):
        weights.write_bytes(whole)
        change_header(weights, change)
        with pytest.raises(ModelError, match=sentence):
            load(out)

    def edit_record(**values: Any) -> Callable[[dict[str, Any]], None]:
        def change(header: dict[str, Any]) -> None:
            records = json.loads(header["__metadata__"]["matrices"])
            records[key].update(values)
            header["__metadata__"]["matrices"] = json.dumps(records)

        return change

    for values, sentence in (
        ({"format": "int3"}, f"'{key}' of .* cannot be read: its format is 'int3'"),
        ({"group": 48}, f"'{key}' of .* cannot be read: its group is 48"),
        ({"in_features": 64}, f"'{key}' of .* has the shape"),
        ({"zeros": True}, f"have no tensor '{key}/zero'"),
    ):
        weights.write_bytes(whole)
        change_header(weights, edit_record(**values))
        with pytest.raises(ModelError, match=sentence):
            load(out)

    weights.write_bytes(whole)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="written by version 99 of the format; this Ockham reads"):
        load(out)


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_what_was_read_stands_where_the_kernels_want_it(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", **SIZES)
    model = load(convert(tmp_path / "model", tmp_path / "out", "int4"))
    for op in model.program.ops:
        for name in op.__slots__:
            for array in getattr(getattr(op, name), "arrays", {}).values():
                assert array.ctypes.data % 64 == 0
