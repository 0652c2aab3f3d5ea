"""The cache of packed weights among a user's files: it removes its own entries and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.kernels.native import core
from ockham.model.loading import load_model
from ockham.model.packed import weight_cache
from ockham.model.packed.layout import PackedWeights
from ockham.model.packed.weight_cache import WeightCache, cache_directory
from tests.helpers.strangers import Strangers
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

DIGESTS = [f"{number:032x}" for number in range(0xA0, 0xA4)]
IDENTITIES = [f"{number:032x}" for number in range(0xB0, 0xB4)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedWeights:
    """Weights as a loader packed them."""
    model = tiny_llama(tmp_path_factory.mktemp("model"))
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedWeights, "digest", lambda self: kept.append(self) or "d")
        load_model(EngineConfig(model=str(model), quantization="int8", weight_cache="off"))
    return kept[0]


class Cache:
    """A cache that takes as many of the weights as it is told."""

    def __init__(self, directory: Path, packed: PackedWeights) -> None:
        self.directory, self.packed = directory, packed
        self.said: list[str] = []

    def keep(self, number: int, entries: int = 9) -> bool:
        """Whether it could be kept in a cache of so many."""
        most = entries * (self.entry_bytes + 200)
        cache = WeightCache(self.directory, most, self.said.append)
        job = cache.keep(IDENTITIES[number], DIGESTS[number], self.packed)
        if job is not None:
            job(threading.Event())
        return cache.find(IDENTITIES[number]) is not None

    @property
    def entry_bytes(self) -> int:
        layout = self.packed.layout()
        return len(layout.header()) + layout.data_bytes


@pytest.fixture
def cache(tmp_path: Path, packed: PackedWeights, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(weight_cache, "ROOM_BYTES", 0)
    return Cache(tmp_path / "cache", packed)


def test_only_entries_give_way_and_are_counted(tmp_path: Path, cache: Cache) -> None:
    strangers = Strangers(tmp_path / "outside")
    assert cache.keep(0)
    entry = cache.directory / DIGESTS[0]
    for name in (
        DIGESTS[0][:-1],
        DIGESTS[0] + "0",
        DIGESTS[3],
        ".partial",
        ".partial-" + DIGESTS[0],
    ):
        shutil.copytree(entry, strangers.watch(cache.directory / name))
    thesis = strangers.watch(cache.directory / "old")
    thesis.mkdir()
    (thesis / "entry.json").write_text(json.dumps({"version": 1, "bytes": 4}))
    (thesis / "model.safetensors").write_bytes(b"mine")
    (cache.directory / ".partial" / "model.safetensors").write_bytes(b"mine")
    for name in ("data.json", "x" * 32 + ".json", IDENTITIES[2] + ".json", IDENTITIES[0] + ".txt"):
        path = strangers.watch(cache.directory / "sources" / name)
        path.write_text('{"weights": 5, "mine": true}')
    strangers.beside(cache.directory, "link.json")
    strangers.beside(cache.directory / "sources")
    before = strangers.digest()
    assert cache.keep(1, entries=1)
    assert strangers.digest() == before
    assert not entry.exists()
    assert not (cache.directory / "sources" / f"{IDENTITIES[0]}.json").exists()
    assert any("holds what is not Ockham's" in s for s in cache.said)


def test_an_entry_that_holds_a_strangers_file_loses_only_its_own(
    tmp_path: Path, cache: Cache
) -> None:
    strangers = Strangers(tmp_path / "outside")
    assert cache.keep(0)
    entry = cache.directory / DIGESTS[0]
    strangers.beside(entry)
    before = strangers.digest()
    assert cache.keep(1, entries=1)
    assert strangers.digest() == before
    assert not (entry / "model.safetensors").exists()
    assert any(f"{entry} stays" in line for line in cache.said)
    assert not cache.keep(0), "what stands there is not written over"
    assert any("holds files that are not Ockham's" in line for line in cache.said)
    assert strangers.digest() == before


def test_an_entry_of_an_earlier_version_is_known_by_its_record(cache: Cache) -> None:
    assert cache.keep(0)
    entry = cache.directory / DIGESTS[0]
    record = json.loads((entry / "entry.json").read_text())
    assert record.pop("weights") == DIGESTS[0]
    (entry / "entry.json").write_text(json.dumps(record))
    assert cache.keep(1, entries=1)
    assert not entry.exists()


def test_a_source_that_names_another_place_leads_nowhere(tmp_path: Path, cache: Cache) -> None:
    """A damaged entry is removed: not one that a path leads to."""
    strangers = Strangers(tmp_path / "outside")
    (strangers.folder / "entry.json").write_text("{")
    assert cache.keep(0)
    (cache.directory / DIGESTS[1]).symlink_to(strangers.folder)
    before = strangers.digest()
    source = cache.directory / "sources" / f"{IDENTITIES[0]}.json"
    found = WeightCache(cache.directory, 1 << 30, cache.said.append)
    for digest in ("../outside/folder", str(strangers.folder), "..", DIGESTS[1], 7, ["x"]):
        source.write_text(json.dumps({"weights": digest}))
        entry = found.find(IDENTITIES[0])
        if entry is not None:
            found.discard(entry)
    source.unlink()
    os.mkfifo(source)
    assert found.find(IDENTITIES[0]) is None
    assert strangers.digest() == before


@pytest.mark.parametrize("place", ["sources", "lock", DIGESTS[0]])
@pytest.mark.parametrize("what", ["link", "fifo"])
def test_a_strangers_thing_in_the_way_is_said_and_kept(
    tmp_path: Path, cache: Cache, place: str, what: str
) -> None:
    strangers = Strangers(tmp_path / "outside")
    cache.directory.mkdir()
    if what == "link":
        (cache.directory / place).symlink_to(
            strangers.file if place == "lock" else strangers.folder
        )
    else:
        os.mkfifo(cache.directory / place)
    strangers.watch(cache.directory / place)
    before = strangers.digest()
    assert not cache.keep(0)
    assert any("are not kept in" in line for line in cache.said)
    assert strangers.digest() == before
    assert not list(cache.directory.glob(".partial*"))


def test_weights_are_readable_by_their_owner_alone_also_those_of_an_earlier_version(
    cache: Cache,
) -> None:
    umask = os.umask(0)
    try:
        assert cache.keep(0)
        entry = cache.directory / DIGESTS[0]
        entry.chmod(0o755)
        for file in entry.iterdir():
            file.chmod(0o644)
        assert cache.keep(0)
    finally:
        os.umask(umask)
    for path in (cache.directory, *cache.directory.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_directory_may_be_a_link_or_a_relative_path(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    cache.directory.symlink_to(tmp_path / "disk")
    assert cache.keep(0)
    monkeypatch.chdir(tmp_path / "disk")
    cache.directory = Path("../cache/../disk")
    assert cache.keep(0)
    assert (tmp_path / "disk" / DIGESTS[0] / "entry.json").is_file()


def test_an_odd_place_for_the_cache_is_a_sentence(
    tmp_path: Path, packed: PackedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = Strangers(tmp_path / "outside")
    before = strangers.digest()
    for place in (str(strangers.file), os.devnull, str(strangers.folder / "index" / "deep")):
        monkeypatch.setenv("OCKHAM_CACHE", place)
        directory = cache_directory(None)
        assert directory is not None
        cache = Cache(directory, packed)
        assert not cache.keep(0)
        assert any("are not kept in" in line for line in cache.said)
    assert strangers.digest() == before
    monkeypatch.setenv("OCKHAM_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(ConfigError, match="no such home directory"):
        cache_directory(None)
    with pytest.raises(ConfigError, match="no such home directory"):
        cache_directory("~nobody-of-this-name")
