"""A damaged checkpoint is refused in a sentence that names the file and the tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ockham.core.errors import ModelError
from ockham.model.files.safetensors import BLOCK_BYTES, Checkpoint, SafetensorsFile
from tests.helpers.oracle import load
from tests.helpers.tiny import tiny_llama


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header whatever."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"{nonsense", "is not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        ({"w": 5}, "tensor 'w' of .*: its header entry is not an object"),
        ({"w": entry(dtype="Q7")}, "tensor 'w' of .*: unknown dtype 'Q7'"),
        ({"w": entry(dtype=["F32"])}, "tensor 'w' of .*: unknown dtype"),
        ({"w": entry(shape=[2, -3])}, "tensor 'w' of .*: its shape is not a list of sizes"),
        ({"w": entry(shape=[2, 1.5])}, "tensor 'w' of .*: its shape is not a list of sizes"),
        ({"w": entry(offsets=[0])}, "tensor 'w' of .*: its data_offsets are not two"),
        ({"w": entry(offsets=[0, 48])}, "tensor 'w' of .*: .*do not lie in the file's 24 bytes"),
        ({"w": entry(offsets=[24, 0])}, "tensor 'w' of .*: .*do not lie"),
        ({"w": entry(offsets=[0, 20])}, r"tensor 'w' of .*: shape .* needs 24 bytes, .* hold 20"),
        ({"w": entry(shape=[1 << 40, 1 << 40])}, "tensor 'w' of .*: shape .* needs"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: Any, sentence: str) -> None:
    path = write(tmp_path / "model.safetensors", header, bytes(24))
    with pytest.raises(ModelError, match=sentence) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    header = {"a": entry(offsets=[0, 24]), "b": entry(offsets=[20, 44])}
    path = write(tmp_path / "model.safetensors", header, bytes(44))
    with pytest.raises(ModelError, match=r"'a' and 'b' of .* overlap"):
        SafetensorsFile(path)


def test_empty_tensors_overlap_nothing(tmp_path: Path) -> None:
    header = {"a": entry(offsets=[0, 24]), "none": entry(shape=[0, 3], offsets=[12, 12])}
    path = write(tmp_path / "model.safetensors", header, bytes(24))
    assert SafetensorsFile(path).tensors["none"].nbytes == 0


@pytest.mark.parametrize("length", [0, 5, 1 << 20, 1 << 62])
def test_a_header_length_that_cannot_be_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "model.safetensors", {"a": entry()}, bytes(24), length=length)
    with pytest.raises(ModelError, match=str(path)):
        SafetensorsFile(path)


def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(ModelError, match="has 3 bytes"):
        SafetensorsFile(path)


def test_a_truncated_checkpoint_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(ModelError, match=r"tensor '.*' of .*truncated or corrupt"):
        load(tmp_path)


def test_a_file_truncated_while_it_is_read_gives_an_error_and_no_signal(tmp_path: Path) -> None:
    rows = 3 * BLOCK_BYTES // 4096
    save_file({"w": np.ones((rows, 1024), np.float32)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    blocks = checkpoint.blocks(checkpoint.find("w", (rows, 1024)), 0, rows)
    next(blocks)
    os.truncate(tmp_path / "model.safetensors", BLOCK_BYTES + 4096)
    with pytest.raises(ModelError, match=r"ends at byte \d+, inside tensor 'w'"):
        list(blocks)


def test_a_file_replaced_while_it_is_read_is_read_to_its_old_end(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((5, 4), np.float32)}, path)
    checkpoint = Checkpoint(tmp_path)
    save_file({"w": np.zeros((1, 4), np.float32)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    (block,) = checkpoint.blocks(checkpoint.find("w", (5, 4)), 0, 5)
    assert (block == 1).all()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    change(tmp_path, lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(ModelError, match=r"no tensor 'model.layers.1.self_attn.k_proj.weight'"):
        load(tmp_path)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    change(tmp_path, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    with pytest.raises(ModelError, match=rf"'{name}' .* \[48, 32\], but config.json implies"):
        load(tmp_path)


def test_a_tensor_of_an_unsupported_dtype_is_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    change(tmp_path, lambda t: t.update({name: np.ones((32, 48), np.int8)}))
    with pytest.raises(ModelError, match=rf"'{name}' .* dtype I8; supported are BF16, F16, F32"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj.weight", "model.norm.weight"])
def test_nan_and_infinity_are_refused_with_the_tensor(
    tmp_path: Path, name: str, value: float, dtype: Any
) -> None:
    tiny_llama(tmp_path)

    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[3] = value
        tensors.update({key: tensor.astype(dtype) for key, tensor in tensors.items()})

    change(tmp_path, poison)
    with pytest.raises(ModelError, match=f"tensor '{name}': NaN or infinity"):
        load(tmp_path, dtype="auto")


def test_float64_is_read_and_rounded(tmp_path: Path) -> None:
    expected = load(tiny_llama(tmp_path)).program.ops[0]
    change(tmp_path, lambda t: t.update({k: v.astype(np.float64) for k, v in t.items()}))
    found = load(tmp_path).program.ops[0]
    assert (found.table.arrays["weight"] == expected.table.arrays["weight"]).all()


def sharded(directory: Path) -> dict[str, str]:
    """Split the checkpoint of a directory in two shards; returns the weight map."""
    from safetensors.numpy import load_file

    tensors = load_file(directory / "model.safetensors")
    names = ["a.safetensors", "b.safetensors"]
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({n: tensors[n] for n in tensors if weight_map[n] == shard}, directory / shard)
    (directory / "model.safetensors").unlink()
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: Any) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tiny_llama(tmp_path))
    load(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names the shard b.safetensors, which is missing"):
        load(tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    weight_map = sharded(tiny_llama(tmp_path))
    write_index(tmp_path, {**weight_map, "extra.weight": "a.safetensors"})
    with pytest.raises(ModelError, match=r"says that a.safetensors holds 'extra.weight'"):
        load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {"w": 3}, {"w": "../elsewhere.safetensors"}])
def test_an_index_that_names_no_files_of_its_directory_is_refused(
    tmp_path: Path, weight_map: Any
) -> None:
    sharded(tiny_llama(tmp_path))
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelError, match=r"model.safetensors.index.json"):
        load(tmp_path)


def test_weights_of_another_format_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tiny_llama(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"It holds pytorch_model.bin: convert it"):
        load(tmp_path)


def change(directory: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")
