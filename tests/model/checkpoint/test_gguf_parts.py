"""GGUF models that are split into parts: the same model, or a sentence that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from safetensors.numpy import load_file

from ockham.core.config import EngineConfig
from ockham.core.errors import ModelError
from ockham.model.checkpoint.gguf.parts import GgufParts
from ockham.model.loading import load_model
from ockham.text.tokenizer import Tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny import tiny_llama

TENSORS = 3 + 2 * 9
LETTERS = [chr(c) for c in range(33, 127)]


def letters(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*LETTERS, "ab", "abc", "abcd"])
    writer.add_token_merges(["a b", "ab c", "abc d"])


def split(directory: Path, seed: int = 0, at_most: int = 8, **sizes: int) -> list[Path]:
    """A tiny Llama with a tokenizer, whole in whole.gguf and in parts of so many tensors."""
    tiny_llama(directory / "hf", seed=seed, **sizes)
    config = json.loads((directory / "hf" / "config.json").read_text())
    weights = load_file(directory / "hf" / "model.safetensors")
    write_gguf(directory / "hf" / "whole.gguf", "llama", config, weights, metadata=letters)
    write_gguf(
        directory / "m.gguf", "llama", config, weights, metadata=letters, split_max_tensors=at_most
    )
    return sorted(directory.glob("m-*.gguf"))


def numerics(path: Path) -> str:
    return load_model(EngineConfig(model=str(path), max_model_len=64, max_num_seqs=2)).numerics_id


def test_any_part_and_the_directory_are_the_whole_model(tmp_path: Path) -> None:
    paths = split(tmp_path)
    assert [path.name for path in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = numerics(tmp_path / "hf" / "whole.gguf")
    for path in (*paths, tmp_path):
        assert numerics(path) == whole
    for path in paths:
        assert Tokenizer(path).encode("abcabcd") == [95, 96]
    assert len(GgufParts(paths[2]).tensors) == TENSORS


def change(path: Path, key: str, kind: str, value: int) -> None:
    """Overwrite a number in a file's metadata."""
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    assert field.types == [gguf.GGUFValueType[kind]]


def remove(paths: list[Path]) -> None:
    paths[1].unlink()


def rename(paths: list[Path]) -> None:
    paths[0].rename(paths[0].with_name("renamed.gguf"))
    paths[0] = paths[0].with_name("renamed.gguf")


def swap(paths: list[Path]) -> None:
    paths[1].rename(paths[1].with_name("aside"))
    paths[2].rename(paths[1])
    paths[1].with_name("aside").rename(paths[2])


def other_count(paths: list[Path]) -> None:
    change(paths[2], "split.count", "UINT16", 4)


def other_tensors(paths: list[Path]) -> None:
    change(paths[1], "split.tensors.count", "INT32", TENSORS + 1)


def too_few_tensors(paths: list[Path]) -> None:
    for path in paths:
        change(path, "split.tensors.count", "INT32", TENSORS + 1)


def same_tensors_twice(paths: list[Path]) -> None:
    shutil.copy(paths[1], paths[2])
    change(paths[2], "split.no", "UINT16", 2)


def whole_file_instead(paths: list[Path]) -> None:
    shutil.copy(paths[0].parent / "hf" / "whole.gguf", paths[2])


def truncated(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove, r"one of 3 parts, which .* but m-00002-of-00003\.gguf is missing; download"),
        (rename, r"renamed\.gguf is one of 3 parts, but its name does not say so; give all"),
        (swap, r"m-00002-of-00003\.gguf is part 2 by its name, but part 3 by its metadata"),
        (other_count, r"m-00003-of-00003\.gguf are parts of .* differ in 'split\.count'"),
        (other_tensors, r"m-00002-of-00003\.gguf are parts of .* in 'split\.tensors\.count'"),
        (too_few_tensors, rf"hold {TENSORS} tensors, but should hold {TENSORS + 1}: they are"),
        (same_tensors_twice, r"are parts of different models: both hold tensor 'blk\."),
        (whole_file_instead, r"m-00003-of-00003\.gguf does not say that it is one of 3 parts"),
        (truncated, r"m-00003-of-00003\.gguf ends at byte .* truncated"),
    ],
)
def test_what_is_wrong_with_parts_is_said(
    tmp_path: Path, damage: Callable[[list[Path]], None], sentence: str
) -> None:
    paths = split(tmp_path)
    damage(paths)
    with pytest.raises(ModelError, match=sentence):
        GgufParts(paths[0])


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    paths = split(tmp_path / "one")
    others = split(tmp_path / "other", at_most=9, num_hidden_layers=3)
    assert len(others) == len(paths) + 1
    shutil.copy(others[2], paths[2])
    change(paths[2], "split.count", "UINT16", 3)
    with pytest.raises(ModelError, match=r"parts of different models: they differ in 'split\.tens"):
        GgufParts(paths[0])
