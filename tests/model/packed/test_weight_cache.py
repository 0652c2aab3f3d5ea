"""Packed weights are kept on disk: the next start finds them, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.kernels.mapping import MOVED_BYTES, map_over, settle
from ockham.kernels.memory import allocate
from ockham.kernels.native import core
from ockham.model import placing, upkeep
from ockham.model.files import weights_file
from ockham.model.loading import LoadedModel, load_model
from ockham.model.packed import weight_cache
from ockham.model.packed.weight_cache import WeightCache, cache_directory
from tests.helpers.prequantised import awq, quantise_checkpoint, random_matrix
from tests.helpers.steps import prompt_logits
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PROMPTS = [[5, 9, 3, 60, 2, 7], [11], [3, 4]]


class Starts:
    """Starts of a model with one cache: what each said, and the jobs that it left."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.said: list[str] = []
        self._jobs: list[upkeep.Upkeep] = []
        real = upkeep.Upkeep

        def started(*args: Any, **kwargs: Any) -> upkeep.Upkeep:
            self._jobs.append(real(*args, **kwargs))
            return self._jobs[-1]

        monkeypatch.setattr(placing, "Upkeep", started)
        monkeypatch.setattr(weight_cache, "GRAIN_NS", 0)
        monkeypatch.setattr("ockham.model.loading.LEAST_BYTES", 0)
        monkeypatch.setattr(weight_cache, "ROOM_BYTES", 0)

    def __call__(self, model: Path, quantization: str | None = "int4", **more: Any) -> LoadedModel:
        self.said, self._jobs = [], []
        settings = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64}
        config = EngineConfig(
            model=str(model),
            quantization=quantization,
            **{"weight_cache": str(self.directory), **settings, **more},
        )
        loaded = load_model(config, self.said.append)
        for job in self._jobs:
            job.wait(30)
        return loaded

    @property
    def found(self) -> bool:
        return any("the packed weights come from" in line for line in self.said)

    def entries(self) -> list[Path]:
        return sorted(record.parent for record in self.directory.glob("*/entry.json"))


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    return Starts(tmp_path / "cache", monkeypatch)


def same(found: LoadedModel, expected: LoadedModel) -> bool:
    pairs = zip(prompt_logits(found, PROMPTS, 4), prompt_logits(expected, PROMPTS, 4), strict=True)
    equal = all(one.tobytes() == other.tobytes() for one, other in pairs)
    return equal and found.numerics_id == expected.numerics_id


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8", "int4", "int4:32", None])
def test_cached_weights_are_bit_for_bit_those_that_were_packed(
    tmp_path: Path, starts: Starts, quantization: str | None
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    packed = starts(model, quantization)
    assert not starts.found
    cached = starts(model, quantization)
    assert starts.found
    assert same(cached, packed)
    assert same(packed, starts(model, quantization, weight_cache="off"))
    assert not starts.found


def test_formats_and_checkpoints_do_not_share_an_entry(tmp_path: Path, starts: Starts) -> None:
    one = tiny_llama(tmp_path / "one", **SIZES)
    other = tiny_llama(tmp_path / "other", seed=1, **SIZES)
    ids = {starts(one, "int4").numerics_id}
    for model, quantization in ((one, "int4:32"), (one, "int8"), (other, "int4")):
        ids.add(starts(model, quantization).numerics_id)
        assert not starts.found
    assert len(ids) == len(starts.entries()) == 4


def test_a_quantised_checkpoint_is_cached_as_it_is_held(tmp_path: Path, starts: Starts) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    quantise_checkpoint(
        model,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
        awq,
        lambda rows, columns, seed: random_matrix(rows, columns, 32, seed, symmetric=False),
    )
    packed = starts(model, None)
    cached = starts(model, None)
    assert starts.found
    assert cached.weight_format == "int4+bf16"
    assert same(cached, packed)


def test_a_changed_checkpoint_is_packed_anew(tmp_path: Path, starts: Starts) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    before = starts(model).numerics_id
    path = model / "model.safetensors"
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 0x40  # a weight, in place: the same inode, size and header
    with open(path, "r+b") as file:
        file.write(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert starts(model).numerics_id != before
    assert not starts.found


def test_a_copy_is_packed_once_more_and_found_by_its_content(
    tmp_path: Path, starts: Starts
) -> None:
    starts(tiny_llama(tmp_path / "model", **SIZES))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "model", copy)
    starts(copy)
    assert not starts.found
    assert len(starts.entries()) == 1
    starts(copy)
    assert starts.found


def test_files_that_changed_just_now_are_not_trusted(
    tmp_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    monkeypatch.setattr(weight_cache, "GRAIN_NS", 1_000_000_000_000)
    starts(model)
    assert not starts.entries()


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    counted = iter(range(100))
    real = weights_file.WeightsFile.identity
    monkeypatch.setattr(
        weights_file.WeightsFile, "identity", lambda self: {**real(self), "bytes": next(counted)}
    )
    starts(model)
    assert not starts.entries()


def cut_short(entry: Path) -> None:
    os.truncate(entry / "model.safetensors", (entry / "model.safetensors").stat().st_size - 5)


def flip(place: int) -> Callable[[Path], None]:
    def change(entry: Path) -> None:
        raw = bytearray((entry / "model.safetensors").read_bytes())
        raw[place] ^= 1
        (entry / "model.safetensors").write_bytes(raw)

    return change


def flip_weights(entry: Path) -> None:
    """Change a byte of the first array, which follows the header."""
    with open(entry / "model.safetensors", "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    flip(8 + header_bytes + 100)(entry)


def another_version(entry: Path) -> None:
    record = json.loads((entry / "entry.json").read_text())
    (entry / "entry.json").write_text(json.dumps({**record, "version": 0}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut_short, "is truncated"),
        (flip(-10), "the file is damaged"),
        (flip_weights, "the file is damaged"),
        (flip(9), ""),
        (flip(400), ""),
        (lambda entry: (entry / "model.safetensors").unlink(), "cannot open the weights"),
        (lambda entry: (entry / "entry.json").write_text("{"), "entry.json cannot be read"),
        (another_version, "is not what entry.json says"),
    ],
    ids=["cut", "last bytes", "weights", "header", "header 2", "no file", "record", "version"],
)
def test_a_damaged_entry_is_noticed_and_packed_anew(
    tmp_path: Path, starts: Starts, damage: Callable[[Path], None], why: str
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    expected = starts(model)
    damage(starts.entries()[0])
    again = starts(model)
    assert not starts.found
    assert any("damaged and will be packed anew" in s and why in s for s in starts.said)
    assert same(again, expected)
    starts(model)
    assert starts.found


def test_what_a_killed_process_left_is_neither_taken_nor_in_the_way(
    tmp_path: Path, starts: Starts
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    starts(model)
    (entry,) = starts.entries()
    whole = (entry / "model.safetensors").read_bytes()
    shutil.rmtree(starts.directory)
    earlier = starts.directory / ".partial"  # as earlier versions had it
    half, empty = (starts.directory / f".partial-{entry.name}-{c * 16}" for c in "ab")
    for left in (earlier, half, empty):
        left.mkdir(parents=True)
    (earlier / "model.safetensors").write_bytes(whole[:-1000])
    (half / "writing.json").write_text(json.dumps({"weights": entry.name}))
    (half / "model.safetensors").write_bytes(whole[:5])
    starts(model)
    assert not starts.found
    starts(model)
    assert starts.found
    assert sorted(path.name for path in starts.directory.iterdir()) == sorted(
        [entry.name, "lock", "sources"]
    )
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "model.safetensors"]


def test_a_stopped_write_leaves_nothing(tmp_path: Path, starts: Starts) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    cache = WeightCache(starts.directory, 1 << 30, starts.said.append)
    config = EngineConfig(model=str(model), quantization="int4", weight_cache="off")
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_cache.PackedWeights, "digest", lambda self: kept.append(self) or "d")
        load_model(config)
    job = cache.keep("i", "d", kept[0])
    assert job is not None
    assert cache.keep("i", "d", kept[0]) is None, "somebody else writes"
    stop = threading.Event()
    stop.set()
    job(stop)
    assert not list(starts.directory.glob("*/model.safetensors"))
    job = cache.keep("i", "d", kept[0])
    assert job is not None, "the lock was given back"
    job(threading.Event())
    assert cache.find("i") is not None


def test_what_was_used_least_recently_makes_room(tmp_path: Path, starts: Starts) -> None:
    models = [tiny_llama(tmp_path / str(seed), seed=seed, **SIZES) for seed in range(3)]
    starts(models[0])
    one = sum(file.stat().st_size for file in starts.entries()[0].iterdir())
    starts(models[1])
    starts(models[0])  # used again, so the other is the oldest
    assert starts.found
    starts(models[2], weight_cache_bytes=2 * one + 100)
    assert len(starts.entries()) == 2
    starts(models[0])
    assert starts.found
    starts(models[1], weight_cache_bytes=one // 2)
    assert not starts.found
    assert any("--weight-cache-bytes allows" in line for line in starts.said)
    assert len(starts.entries()) == 2
    assert len(list((starts.directory / "sources").glob("*.json"))) == 2


def test_a_disk_without_room_is_a_sentence_and_the_model_runs(
    tmp_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    monkeypatch.setattr(weight_cache, "ROOM_BYTES", 1 << 60)
    starts(model)
    assert any("are not kept in" in line and "are free" in line for line in starts.said)
    monkeypatch.setattr(weight_cache, "ROOM_BYTES", 0)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "_write_at", full)
    starts(model)
    assert any("failed: No space left on device." in line for line in starts.said)
    assert not starts.entries()
    assert not (starts.directory / ".partial").exists()


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path, starts: Starts) -> None:
    (tmp_path / "file").write_text("")
    model = tiny_llama(tmp_path / "model", **SIZES)
    starts(model, weight_cache=str(tmp_path / "file" / "cache"))
    assert any("are not kept in" in s and "Not a directory" in s for s in starts.said)


def test_where_the_cache_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("OCKHAM_CACHE", raising=False)
    assert cache_directory(None) == Path("/home/someone/.cache/ockham/packed")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory(None) == Path("/xdg/ockham/packed")
    monkeypatch.setenv("OCKHAM_CACHE", "/own")
    assert cache_directory(None) == Path("/own/packed")
    assert cache_directory("~/here") == Path("/home/someone/here")
    assert cache_directory("off") is None


def test_yaml_may_say_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("weight-cache: off\nmax-tokens: 1\n")
    monkeypatch.setattr("ockham.model.loading.LEAST_BYTES", 0)
    monkeypatch.setenv("OCKHAM_CACHE", str(tmp_path / "cache"))
    arguments = ["run", "lab", "-p", "a", "--config", str(tmp_path / "c.yaml")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "cache").exists()
    assert not Path("False").exists()


def test_a_process_that_ends_at_once_still_keeps_what_it_packed(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    script = (
        "from ockham.core.config import EngineConfig\n"
        "from ockham.model import loading\n"
        "from ockham.model.packed import weight_cache\n"
        "loading.LEAST_BYTES = weight_cache.GRAIN_NS = weight_cache.ROOM_BYTES = 0\n"
        f"config = EngineConfig(model={str(model)!r}, quantization='int8', "
        f"weight_cache={str(tmp_path / 'cache')!r})\n"
        "loading.load_model(config, print)\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert "come from" not in runs[0].stdout
    assert "come from" in runs[1].stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps only on Linux")
def test_mapped_memory_shows_the_file_while_it_is_moved(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, MOVED_BYTES + (5 << 20) + 77, np.uint8)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096 + content.tobytes())
    file = weights_file.WeightsFile(path)
    memory = allocate(len(content))
    assert file.map_into(memory, 4096)
    expected, wrong, ended = content.tobytes(), [], threading.Event()

    def read() -> None:
        while not ended.is_set():
            if memory.tobytes() != expected:
                wrong.append("another byte")

    reader = threading.Thread(target=read)
    reader.start()
    done = 0
    while done < len(memory):
        moved = settle(memory, done)
        assert moved > 0
        done += moved
        time.sleep(0.01)
    ended.set()
    reader.join()
    assert not wrong
    path.write_bytes(b"")  # no page of the file is seen any more
    assert memory.tobytes() == expected


def test_what_cannot_be_mapped_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 << 20))
    with open(path, "rb") as file:
        small, large = allocate(4096), allocate(4 << 20)
        small[:], large[:] = 7, 7
        assert not map_over(small, file.fileno(), 0)
        assert not map_over(large, file.fileno(), 100)
        assert (small == 7).all()
        assert (large == 7).all()


def test_a_converted_directory_is_not_cached(tmp_path: Path, starts: Starts) -> None:
    arguments = [str(tiny_llama(tmp_path / "model", **SIZES)), str(tmp_path / "out")]
    result = CliRunner().invoke(cli, ["convert", *arguments, "--quantization", "int4"])
    assert result.exit_code == 0, result.output
    converted = starts(tmp_path / "out", None)
    assert not starts.entries()
    assert same(converted, starts(tmp_path / "model"))


def test_weights_of_the_size_of_pages_are_mapped_and_settle(tmp_path: Path, starts: Starts) -> None:
    sizes = {**SIZES, "vocab_size": 20_000, "hidden_size": 256, "num_attention_heads": 16}
    model = tiny_llama(tmp_path / "model", **sizes)
    packed = starts(model, "fp32")
    cached = starts(model, "fp32")  # `starts` waits until it is settled
    assert starts.found
    shutil.rmtree(starts.directory)
    assert same(cached, packed)
    head = cached.program.ops[-1].out.arrays["weight"]
    assert head.nbytes > 1 << 21
    assert head.ctypes.data % 4096 == 0
    tensors = load_file(model / "model.safetensors")
    rows = cached.program.ops[-1].out.rows(np.arange(20_000))
    assert (rows == tensors["lm_head.weight"]).all()


def test_one_changed_weight_is_another_model(tmp_path: Path, starts: Starts) -> None:
    model = tiny_llama(tmp_path / "model", **SIZES)
    before = starts(model, "int8", weight_cache="off").numerics_id
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 1.0
    save_file(weights, model / "model.safetensors")
    assert starts(model, "int8", weight_cache="off").numerics_id != before


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(Exception, match="weight_cache_bytes must not be negative, got -1"):
        EngineConfig(weight_cache_bytes=-1)
