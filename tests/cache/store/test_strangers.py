"""The KV store among a user's files: it removes old stores and nothing else."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from ockham.cache.store.disk import STORES, DiskStore, StoreError
from ockham.cache.store.names import Identity
from tests.helpers.pages import IDENTITY, entry_bytes, get, names_of, put
from tests.helpers.strangers import Strangers

OTHER = Identity("other bits", "here", 4, (96, 40))


def fill_other(directory: Path, nbytes: int) -> Path:
    """A store of another model, of four pages."""
    store = DiskStore(directory, 4 * nbytes, OTHER)
    put(store, OTHER.names(np.arange(16, dtype=np.int32), ""))
    store.close()
    return directory / OTHER.digest


def test_only_old_stores_give_way_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = entry_bytes(tmp_path)
    strangers, directory = Strangers(tmp_path / "outside"), tmp_path / "store"
    other = fill_other(directory, nbytes)
    prefix, extended = directory / OTHER.digest[:-1], directory / (OTHER.digest + "0")
    for copy in (prefix, extended, directory / "copy"):
        shutil.copytree(other, strangers.watch(copy))
    renamed = strangers.watch(directory / ("0123456789abcdef" * 2))
    renamed.mkdir()
    (renamed / "store.json").write_text("[" * 100_000)
    (renamed / "pages").write_bytes(bytes(10 * nbytes))
    strangers.beside(directory)
    before = strangers.digest()
    with caplog.at_level(logging.WARNING, "ockham.store"):
        store = DiskStore(directory, 7 * nbytes, IDENTITY)
    assert "holds what is not Ockham's" in caplog.text
    assert "and 14 more): it is left alone, and not counted" in caplog.text
    put(store, names_of(range(8)))
    assert other.exists()
    put(store, names_of(range(24)))
    assert get(store, names_of(range(24))) == 6
    assert not other.exists()
    assert strangers.digest() == before
    store.check_integrity()
    store.close()


def test_an_old_store_that_holds_a_strangers_file_loses_only_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = entry_bytes(tmp_path)
    strangers, directory = Strangers(tmp_path / "outside"), tmp_path / "store"
    other = fill_other(directory, nbytes)
    strangers.beside(other)
    before = strangers.digest()
    store = DiskStore(directory, 4 * nbytes, IDENTITY)
    put(store, names_of(range(16)))
    assert get(store, names_of(range(16))) == 4
    assert "the directory stays" in caplog.text
    assert strangers.digest() == before
    assert not (other / "pages").exists()
    store.close()


def test_half_a_store_is_known_and_counts(tmp_path: Path) -> None:
    nbytes = entry_bytes(tmp_path)
    directory = tmp_path / "store"
    other = fill_other(directory, nbytes)
    (other / "index").unlink()  # as a kill may leave it while it is removed
    (other / "store.partial").write_bytes(b"half")
    assert STORES.owns(other)
    store = DiskStore(directory, 4 * nbytes, IDENTITY)
    put(store, names_of(range(16)))
    assert not other.exists()
    store.close()


def test_a_store_in_use_stays_by_whatever_path_its_engine_came(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = entry_bytes(tmp_path)
    directory = tmp_path / "store"
    fill_other(directory, nbytes)
    used = DiskStore(directory, 4 * nbytes, OTHER)
    (directory / "lock").unlink()  # somebody tidied up
    store = DiskStore(directory, 4 * nbytes, IDENTITY)
    assert put(store, names_of(range(16))) == 0
    assert "another engine uses it" in caplog.text
    used.check_integrity()
    assert len(used) == 4
    used.close()
    with pytest.raises(StoreError, match="in use by another engine"):
        DiskStore(directory, 4 * nbytes, IDENTITY)
    store.close()


@pytest.mark.parametrize("name", ["pages", "index", "store.json"])
@pytest.mark.parametrize("what", ["link", "folder", "fifo"])
def test_a_strangers_thing_in_a_stores_place_is_said_and_kept(
    tmp_path: Path, name: str, what: str
) -> None:
    strangers, own = Strangers(tmp_path / "outside"), tmp_path / "store" / IDENTITY.digest
    DiskStore(tmp_path / "store", 1 << 16, IDENTITY).close()
    (own / name).unlink()
    if what == "link":
        (own / name).symlink_to(strangers.file)
    elif what == "folder":
        (own / name).mkdir()
    else:
        os.mkfifo(own / name)
    strangers.watch(own / name)
    before = strangers.digest()
    with pytest.raises(StoreError, match=f"cannot be used: '{name}' is"):
        DiskStore(tmp_path / "store", 1 << 16, IDENTITY)
    assert strangers.digest() == before
    with pytest.raises(StoreError, match="cannot be used"):  # and the lock was given back
        DiskStore(tmp_path / "store", 1 << 16, IDENTITY)


def test_a_link_in_the_place_of_a_store_or_its_lock_is_not_followed(tmp_path: Path) -> None:
    strangers = Strangers(tmp_path / "outside")
    directory = tmp_path / "store"
    directory.mkdir()
    (directory / IDENTITY.digest).symlink_to(strangers.folder)
    before = strangers.digest()
    with pytest.raises(StoreError, match="is no directory, or a link"):
        DiskStore(directory, 1 << 16, IDENTITY)
    (directory / IDENTITY.digest).unlink()
    (directory / "lock").unlink()
    (directory / "lock").symlink_to(strangers.file)
    with pytest.raises(StoreError, match="'lock' is a symbolic link"):
        DiskStore(directory, 1 << 16, IDENTITY)
    assert strangers.digest() == before


def test_a_backup_by_hard_links_keeps_its_content(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", 1 << 16, IDENTITY)
    put(store, names_of(range(16)))
    store.close()
    backup = tmp_path / "backup"
    backup.mkdir()
    for name in ("pages", "index"):
        os.link(tmp_path / "store" / IDENTITY.digest / name, backup / name)
    before = [(backup / name).read_bytes() for name in ("pages", "index")]
    store = DiskStore(tmp_path / "store", 1 << 16, IDENTITY)
    put(store, names_of([7] * 16))
    assert get(store, names_of([7] * 16)) == 4
    store.close()
    assert before == [(backup / name).read_bytes() for name in ("pages", "index")]


def test_the_directory_may_be_a_link_or_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "here").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "here")
    monkeypatch.chdir(tmp_path / "disk")
    for name in (str(tmp_path / "link"), "here", "../disk/here", "./here/../here/"):
        store = DiskStore(Path(name), 1 << 16, IDENTITY)
        put(store, names_of(range(8)))
        assert get(store, names_of(range(8))) == 2
        store.close()
    assert sorted(path.name for path in (tmp_path / "disk" / "here").iterdir()) == sorted(
        ["lock", IDENTITY.digest]
    )


def test_a_store_is_readable_by_its_owner_alone_also_one_of_an_earlier_version(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "store"
    umask = os.umask(0)
    try:
        DiskStore(directory, 1 << 16, IDENTITY).close()
        own = directory / IDENTITY.digest
        own.chmod(0o755)
        (own / "store.json").chmod(0o644)
        (own / "pages").chmod(0o644)
        DiskStore(directory, 1 << 16, IDENTITY).close()
    finally:
        os.umask(umask)
    for path in (directory, *directory.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
