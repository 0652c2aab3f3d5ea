"""The store alone, beside what it should hold: under damage, restarts and kills."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ockham.cache.store.disk import DiskStore, StoreError
from ockham.cache.store.names import Identity, PageName
from tests.helpers.pages import BOTH, IDENTITY, entry_bytes, get, names_of, put

CONTEXTS = st.tuples(
    st.sampled_from(["", "tenant"]),
    st.lists(st.sampled_from([(1, 2, 3, 4), (5, 6, 7, 8), (1, 2, 3, 5)]), max_size=6),
)
"""Tenants and pages of tokens, of which many begin alike."""


def names(context: tuple[str, list[tuple[int, ...]]]) -> list[PageName]:
    salt, pages = context
    return names_of([token for page in pages for token in page], salt)


class StoreMachine(RuleBasedStateMachine):
    """One directory, opened again and again, and the keys that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.entry_bytes = entry_bytes(self.root)
        self.pages = 12
        self.given: set[bytes] = set()
        self.damaged = False
        self.open()

    def open(self) -> None:
        self.store = DiskStore(self.root / "store", self.pages * self.entry_bytes, IDENTITY)

    @rule(context=CONTEXTS, groups=st.sampled_from([BOTH, BOTH, 0b10]))
    def put(self, context: tuple[str, list[tuple[int, ...]]], groups: int) -> None:
        wanted = names(context)
        evicted = self.store.stats().evicted
        there = put(self.store, wanted, groups)
        self.given.update(name.key for name in wanted)
        if self.store.stats().evicted == evicted and len(wanted) <= self.pages:
            assert there == len(wanted)
            assert all(groups & ~self.store.groups_of(n.key) == 0 for n in wanted)

    @rule(context=CONTEXTS)
    def get(self, context: tuple[str, list[tuple[int, ...]]]) -> None:
        wanted = names(context)
        held = [bool(self.store.groups_of(name.key)) for name in wanted]
        expected = (*held, False).index(False)
        assert all(
            name.key in self.given for name, there in zip(wanted, held, strict=True) if there
        )
        found = get(self.store, wanted)
        assert found <= expected
        if not self.damaged:
            assert found == expected

    @rule(pages=st.sampled_from([1, 4, 12, 12]))
    def reopen(self, pages: int) -> None:
        held = {key for key in self.given if self.store.groups_of(key)}
        self.store.close()
        same, self.pages = pages >= self.pages, pages
        self.open()
        found = {key for key in self.given if self.store.groups_of(key)}
        assert found <= held
        if same and not self.damaged:
            assert found == held

    @rule(file=st.sampled_from(["pages", "index"]), at=st.floats(0, 1), byte=st.integers(1, 255))
    def flip(self, file: str, at: float, byte: int) -> None:
        path = self.root / "store" / IDENTITY.digest / file
        data = bytearray(path.read_bytes())
        if data:
            data[min(int(at * len(data)), len(data) - 1)] ^= byte
            with open(path, "r+b") as opened:
                opened.write(data)
            self.damaged = True

    @rule(file=st.sampled_from(["pages", "index"]), share=st.floats(0, 1))
    def cut_off(self, file: str, share: float) -> None:
        path = self.root / "store" / IDENTITY.digest / file
        os.truncate(path, int(share * path.stat().st_size))
        self.damaged = True

    @rule()
    def repair(self) -> None:
        """Begin with a directory that nothing was done to."""
        self.store.close()
        shutil.rmtree(self.root / "store")
        self.given.clear()
        self.damaged = False
        self.open()

    @invariant()
    def is_sound(self) -> None:
        self.store.check_integrity()
        assert len(self.store) <= self.pages

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_what_was_used_longest_ago_goes_first_and_of_a_context_its_end(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", 6 * entry_bytes(tmp_path), IDENTITY)
    one, two, three = (names_of([i] * 12) for i in range(3))
    put(store, one)
    put(store, two)
    assert get(store, one) == 3  # used again
    put(store, three[:2])
    assert get(store, two) == 1
    assert get(store, one) == 3
    assert get(store, three) == 2
    assert store.stats().evicted == 2


def test_use_is_known_after_a_restart(tmp_path: Path) -> None:
    limit = 6 * entry_bytes(tmp_path)
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    one, two, three = (names_of([i] * 12) for i in range(3))
    put(store, one)
    put(store, two)
    get(store, one)
    store.close()
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    put(store, three)
    assert [get(store, each) for each in (one, two, three)] == [3, 0, 3]


def test_a_page_with_more_groups_replaces_one_with_fewer(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    wanted = names_of(range(8))
    put(store, wanted, 0b10)
    put(store, wanted, BOTH)
    assert [store.groups_of(name.key) for name in wanted] == [BOTH, BOTH]
    put(store, wanted, 0b10)
    assert get(store, wanted) == 2
    assert [store.groups_of(name.key) for name in wanted] == [BOTH, BOTH]
    store.check_integrity()


def test_a_record_of_another_content_is_refused(tmp_path: Path) -> None:
    """Equal keys are not enough: what the record names is compared."""
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    (name,) = names_of(range(4))
    put(store, [name])
    for field in ("parent", "root", "tokens"):
        other = name._replace(**{field: bytes(len(getattr(name, field)))})
        assert get(store, [other]) == 0
        assert store.stats().refused == 1
        assert get(store, [name]) == 0  # and gone
        put(store, [name])
        store._stats.refused = 0


@pytest.mark.parametrize("file", ["pages", "index"])
def test_damage_is_refused_once_and_written_again(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    wanted = names_of(range(20))
    put(store, wanted)
    path = tmp_path / IDENTITY.digest / file
    data = bytearray(path.read_bytes())
    slot = store.slot_bytes if file == "pages" else len(data) // store._slots
    data[2 * slot + 30] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "ockham.store"):
        assert get(store, wanted) == 2
        assert get(store, wanted) == 2
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    assert store.stats().refused == 1
    assert put(store, wanted) == 5
    assert get(store, wanted) == 5


def test_another_models_state_is_kept_until_its_room_is_needed(tmp_path: Path) -> None:
    nbytes = entry_bytes(tmp_path)
    other = Identity("other bits", "here", 4, (96, 40))
    store = DiskStore(tmp_path / "store", 8 * nbytes, other)
    put(store, other.names(np.arange(16, dtype=np.int32), ""))
    store.close()
    small = DiskStore(tmp_path / "store", 12 * nbytes, IDENTITY)
    assert get(small, names_of(range(16))) == 0
    put(small, names_of(range(8)))
    assert (tmp_path / "store" / other.digest).exists()
    put(small, names_of(range(40)))
    assert not (tmp_path / "store" / other.digest).exists()
    assert get(small, names_of(range(40))) == 10


def test_a_copied_store_of_another_model_is_begun_anew(tmp_path: Path) -> None:
    other = Identity("other bits", "here", 4, (96, 40))
    store = DiskStore(tmp_path, 1 << 16, other)
    put(store, other.names(np.arange(16, dtype=np.int32), ""))
    store.close()
    shutil.copytree(tmp_path / other.digest, tmp_path / IDENTITY.digest)
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    assert len(store) == 0
    assert put(store, names_of(range(8))) == 2


def test_one_engine_at_a_time(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    with pytest.raises(StoreError, match="in use by another engine; give each its own directory"):
        DiskStore(tmp_path, 1 << 16, IDENTITY)
    store.close()
    DiskStore(tmp_path, 1 << 16, IDENTITY).close()


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no room for one page of"):
        DiskStore(tmp_path, 100, IDENTITY)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used: Not a directory"):
        DiskStore(tmp_path / "file" / "store", 1 << 16, IDENTITY)
    with pytest.raises(StoreError, match="file cannot be used: it is no directory"):
        DiskStore(tmp_path / "file", 1 << 16, IDENTITY)


def test_a_full_disk_ends_growth_but_not_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = entry_bytes(tmp_path)
    monkeypatch.setattr("ockham.cache.store.disk.GROW_BYTES", 3 * nbytes)
    store = DiskStore(tmp_path / "store", 100 * nbytes, IDENTITY)
    put(store, names_of(range(12)))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.WARNING, "ockham.store"):
        put(store, names_of([7] * 12))
        put(store, names_of([8] * 12))
    assert caplog.text.count("cannot grow") == 1
    assert "No space left on device" in caplog.text
    assert get(store, names_of([8] * 12)) == 3
    store.check_integrity()


def test_a_disk_with_little_room_is_filled_in_smaller_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nbytes = entry_bytes(tmp_path)
    monkeypatch.setattr("ockham.cache.store.disk.GROW_BYTES", 8 * nbytes)
    reserve = os.posix_fallocate
    room = 5 * nbytes

    def little(descriptor: int, offset: int, length: int) -> None:
        if offset + length > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", little)
    store = DiskStore(tmp_path / "store", 100 * nbytes, IDENTITY)
    with caplog.at_level(logging.WARNING, "ockham.store"):
        put(store, names_of(range(40)))
        put(store, names_of([8] * 40))
    assert caplog.text.count("cannot grow") == 1
    assert get(store, names_of([8] * 40)) >= 4
    store.check_integrity()


def test_a_disk_that_fails_is_written_to_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path, 1 << 16, IDENTITY)
    put(store, names_of(range(8)))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwritev", broken)
    with caplog.at_level(logging.WARNING, "ockham.store"):
        assert put(store, names_of([9] * 8)) == 0
        assert put(store, names_of([9] * 8)) == 0
    assert caplog.text.count("nothing more is written") == 1
    assert get(store, names_of(range(8))) == 2
    store.check_integrity()


WRITES = """
import sys
from pathlib import Path
from ockham.cache.store.disk import DiskStore
from tests.helpers.pages import IDENTITY, names_of, put
store = DiskStore(Path(sys.argv[1]), int(sys.argv[2]), IDENTITY)
print(len(store), flush=True)
for i in range(int(sys.argv[3]), 10**9):
    put(store, names_of([i % 40] * 8 + [i] * 4))
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    rng = random.Random(5)
    directory, limit = tmp_path / "store", 30 * entry_bytes(tmp_path)
    root = Path(__file__).parents[3]
    seen = 0
    for run in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(directory), str(limit), str(1000 * run)],
            stdout=subprocess.PIPE,
            cwd=root,
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = DiskStore(directory, limit, IDENTITY)
        store.check_integrity()
        for i in range(40):
            seen += get(store, names_of([i] * 8))
        assert store.stats().refused <= 16  # at most the records of one write
        store.close()
    assert seen


def test_pinned_pages_stay_also_after_a_restart(tmp_path: Path) -> None:
    limit = 6 * entry_bytes(tmp_path)
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    one, two, three = (names_of([i] * 12) for i in range(3))
    put(store, one)
    store.pin([name.key for name in one])
    for _ in range(2):
        put(store, two)
        put(store, three)
        assert [get(store, each) for each in (one, three)] == [3, 3]
        store.check_integrity()
        store.close()
        store = DiskStore(tmp_path / "store", limit, IDENTITY)
    get(store, two)
    store.pin([])
    store.close()
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    put(store, two)
    put(store, three)
    assert [get(store, each) for each in (one, two, three)] == [0, 3, 3]


def test_a_page_may_be_pinned_before_it_comes(tmp_path: Path) -> None:
    limit = 4 * entry_bytes(tmp_path)
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    assert store.most_pinned == 2
    one = names_of([1] * 8)
    store.pin([name.key for name in one])
    put(store, one)
    store.close()
    store = DiskStore(tmp_path / "store", limit, IDENTITY)
    for i in range(2, 6):
        put(store, names_of([i] * 8))
    assert get(store, one) == 2
