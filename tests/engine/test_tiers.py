"""State that left the pool comes back from memory and disk, and every fault is said."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from ockham.cache.store import tiers as tiers_module
from ockham.core.errors import ConfigError, DoesNotFit
from ockham.core.ledger import Ledger
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from tests.helpers import serving
from tests.helpers.serving import serve
from tests.helpers.tiny import tiny_llama, tiny_mistral

VOCABULARY = 61
STORE_BYTES = 1 << 22


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiers"), vocab_size=VOCABULARY)


make_engine = partial(serving.make_engine, max_num_batched_tokens=32, speculative_config="none")
ask = partial(serving.ask, max_tokens=6, logprobs=2)


def with_store(checkpoint: Path, directory: Path, **settings: Any) -> Engine:
    values = {"kv_store": str(directory), "kv_store_bytes": STORE_BYTES, **settings}
    return make_engine(checkpoint, **values)


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()
    return found


def written(engine: Engine) -> None:
    """Wait until what goes to the disk is there."""
    assert engine.tiers is not None
    assert engine.tiers.writer is not None
    assert engine.tiers.writer.flush(10.0)


def saved(bill: Ledger, name: str) -> int:
    return bill.saved[name].tokens if name in bill.saved else 0


def empty_the_pool(engine: Engine) -> None:
    """As if others had needed every page."""
    assert engine.state.reclaim is not None
    engine.state.reclaim([layout.pages for layout in engine.state.groups])
    assert engine.state.pages_used == 0


def test_a_restart_finds_its_prompts(checkpoint: Path, tmp_path: Path) -> None:
    prompt = tokens(150)
    expected = serve(make_engine(checkpoint, reuse="none"), [ask("a", prompt)])["a"][0]
    engine = with_store(checkpoint, tmp_path)
    assert serve(engine, [ask("a", prompt)])["a"][0] == expected
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    found, bill = serve(engine, [ask("b", prompt)])["b"]
    assert found == expected
    assert (bill.prompt_tokens_computed, bill.prompt_tokens_reused) == (6, 144)
    assert saved(bill, "store") == 144
    assert saved(bill, "prefix") == 0
    # The next one has it in the pool, to the last token but one.
    found, bill = serve(engine, [ask("c", prompt)])["c"]
    assert found == expected
    assert (saved(bill, "store"), saved(bill, "prefix")) == (0, 149)
    engine.close()


def test_answers_are_kept_too_and_turns_go_on_from_them(checkpoint: Path, tmp_path: Path) -> None:
    engine = with_store(checkpoint, tmp_path)
    chat = tokens(60)
    (answer, _), _ = serve(engine, [ask("a", chat, max_tokens=40)])["a"]
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    _, bill = serve(engine, [ask("b", [*chat, *answer, *tokens(9, 1)])])["b"]
    assert saved(bill, "store") == (60 + 39) // 16 * 16
    engine.close()


def test_only_what_is_missing_in_the_pool_is_fetched(checkpoint: Path, tmp_path: Path) -> None:
    engine = with_store(checkpoint, tmp_path)
    prompt = tokens(150)
    serve(engine, [ask("a", prompt)])
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", prompt[:70])])
    _, bill = serve(engine, [ask("b", prompt)])["b"]
    assert saved(bill, "prefix") == 64
    assert saved(bill, "store") == 144 - 64
    engine.close()


def test_tenants_share_nothing_on_disk(checkpoint: Path, tmp_path: Path) -> None:
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", tokens(100), "one")])
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    for salt, found in (("two", 0), ("", 0), ("one", 96)):
        _, bill = serve(engine, [ask("b", tokens(100), salt)])["b"]
        assert saved(bill, "store") == found
    assert "one" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*/*")).decode("latin1")
    engine.close()


def test_another_models_state_is_not_used(
    checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tiny_llama(tmp_path_factory.mktemp("other"), vocab_size=VOCABULARY, seed=1)
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", tokens(100))])
    engine.close()
    engine = with_store(other, tmp_path)
    expected = serve(make_engine(other, reuse="none"), [ask("a", tokens(100))])["a"][0]
    found, bill = serve(engine, [ask("a", tokens(100))])["a"]
    assert found == expected
    assert saved(bill, "store") == 0
    engine.close()


def test_those_who_wait_for_one_prefix_read_it_once(checkpoint: Path, tmp_path: Path) -> None:
    engine = with_store(checkpoint, tmp_path)
    shared = tokens(128)
    expected = serve(engine, [ask(str(i), [*shared, i, 1, 2]) for i in range(4)])
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    found = serve(engine, [ask(str(i), [*shared, i, 1, 2]) for i in range(4)])
    assert {n: a for n, (a, _) in found.items()} == {n: a for n, (a, _) in expected.items()}
    assert sorted(saved(bill, "store") for _, bill in found.values()) == [0, 0, 0, 128]
    assert sum(bill.prompt_tokens_computed for _, bill in found.values()) == 4 * 3
    assert engine.stats().tiers.fetched == 8
    engine.close()


def test_a_request_may_leave_while_its_state_is_on_its_way(
    checkpoint: Path, tmp_path: Path
) -> None:
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", tokens(150))])
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    for steps in range(4):
        engine.add(ask("b", tokens(150)))
        for _ in range(steps):
            engine.step()
            engine.check_integrity()
        engine.abort("b")
        engine.check_integrity()
        assert not engine.has_work
        assert engine.stats().pages_used == 0
        engine.reuse.forget()
    engine.close()


def test_a_damaged_page_is_computed_again(checkpoint: Path, tmp_path: Path) -> None:
    engine = with_store(checkpoint, tmp_path)
    expected = serve(engine, [ask("a", tokens(150))])["a"][0]
    engine.close()
    (pages,) = tmp_path.glob("*/pages")
    data = bytearray(pages.read_bytes())
    engine = with_store(checkpoint, tmp_path)
    assert engine.tiers is not None
    assert engine.tiers.disk is not None
    data[3 * engine.tiers.disk.slot_bytes + 100] ^= 4
    pages.write_bytes(data)
    found, bill = serve(engine, [ask("b", tokens(150))])["b"]
    assert found == expected
    assert saved(bill, "store") == 48
    assert engine.stats().tiers.refused == 1
    written(engine)
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    assert saved(serve(engine, [ask("b", tokens(150))])["b"][1], "store") == 144
    engine.close()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_a_truncated_store_serves_what_is_left(
    checkpoint: Path, tmp_path: Path, share: float
) -> None:
    engine = with_store(checkpoint, tmp_path)
    expected = serve(engine, [ask("a", tokens(150))])["a"][0]
    engine.close()
    for name in ("pages", "index"):
        (path,) = tmp_path.glob(f"*/{name}")
        with open(path, "r+b") as file:
            file.truncate(int(share * path.stat().st_size))
        engine = with_store(checkpoint, tmp_path)
        assert serve(engine, [ask("b", tokens(150))])["b"][0] == expected
        engine.close()


def test_two_engines_on_one_store(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = with_store(checkpoint, tmp_path)
    with caplog.at_level(logging.WARNING):
        second = with_store(checkpoint, tmp_path)
    assert "in use by another engine" in caplog.text
    assert "Serving goes on without it." in caplog.text
    answers = [serve(engine, [ask("a", tokens(50))])["a"][0] for engine in (first, second)]
    assert answers[0] == answers[1]
    second.close()
    first.close()


def test_an_unusable_directory(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        engine = with_store(checkpoint, tmp_path / "file" / "store")
    assert "cannot be used: Not a directory. Serving goes on without it." in caplog.text
    serve(engine, [ask("a", tokens(50))])


def test_tiers_need_the_prefix_reuse(checkpoint: Path, tmp_path: Path) -> None:
    for settings in ({"kv_store": str(tmp_path)}, {"swap_space": 0.1}):
        with pytest.raises(ConfigError, match="leave them out"):
            make_engine(checkpoint, reuse="none", **settings)
    with pytest.raises(ConfigError, match="no room for one page"):
        make_engine(checkpoint, swap_space=1e-8)
    with pytest.raises(DoesNotFit, match="swap_space takes"):
        make_engine(checkpoint, swap_space=1e5)


def test_a_slow_disk_is_not_waited_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading is weighed against computing, at the measured rates of both."""
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", tokens(150))])
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("b", tokens(100, 7))])  # so that its pace is known
    assert engine.pace.seconds(0, 100) is not None
    assert engine.tiers is not None
    assert engine.tiers.reader is not None
    engine.tiers.reader.bytes_per_s = 10.0
    _, bill = serve(engine, [ask("c", tokens(150))])["c"]
    assert saved(bill, "store") == 0
    assert engine.stats().tiers.not_worth == 1
    # A disk that hangs is given up.
    engine.reuse.forget()
    engine.tiers.reader.bytes_per_s = None
    monkeypatch.setattr(tiers_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(engine.tiers.disk, "read", lambda *_: time.sleep(0.2) or [])
    _, bill = serve(engine, [ask("d", tokens(150))])["d"]
    assert saved(bill, "store") == 0
    engine.close()


def test_an_engine_that_waits_for_the_disk_sleeps(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slower than any step; the engine goes on as soon as there is something."""
    engine = with_store(checkpoint, tmp_path)
    expected = serve(engine, [ask("a", tokens(150))])["a"][0]
    engine.close()
    engine = with_store(checkpoint, tmp_path)
    assert engine.tiers is not None
    assert engine.tiers.disk is not None
    assert engine.tiers.reader is not None
    read, wait = engine.tiers.disk.read, engine.tiers.reader.wait
    asleep, waits = Event(), 0

    def read_when_it_sleeps(*arguments: Any) -> Any:
        assert asleep.wait(60)
        return read(*arguments)

    def counted_wait(*arguments: Any) -> None:
        nonlocal waits
        waits += 1
        asleep.set()
        wait(*arguments)

    monkeypatch.setattr(engine.tiers.disk, "read", read_when_it_sleeps)
    monkeypatch.setattr(engine.tiers.reader, "wait", counted_wait)
    monkeypatch.setattr("ockham.engine.engine.WAIT_S", 3600.0)  # so that only news wake it
    engine.add(ask("b", tokens(150)))
    steps, made = 0, []
    while not made:
        made += [token for delta in engine.step() for token in delta.token_ids]
        steps += 1
        assert steps <= waits + 3  # it never looks around without sleeping; 6 tokens are computed
    assert waits > 0
    while engine.has_work:
        made += [token for delta in engine.step() for token in delta.token_ids]
    assert made == expected[0]
    engine.close()


SERVES = """
import sys
from pathlib import Path
from tests.engine.test_tiers import ask, serve, tokens, with_store, written
engine = with_store(Path(sys.argv[1]), Path(sys.argv[2]))
while True:
    for i in range(8):
        serve(engine, [ask("a", tokens(150, i))])
        if i == 0:
            written(engine)
        engine.reuse.forget()
        print(i, flush=True)
"""


def test_an_engine_that_is_killed_leaves_a_store_that_can_be_trusted(
    checkpoint: Path, tmp_path: Path
) -> None:
    plain = make_engine(checkpoint, reuse="none")
    expected = [serve(plain, [ask("a", tokens(150, i))])["a"][0] for i in range(8)]
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", SERVES, str(checkpoint), str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        for _ in range(rng.integers(1, 17)):
            assert child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.02))  # whatever the writer is about then
        child.kill()
        child.wait()
        engine = with_store(checkpoint, tmp_path)
        for i in range(8):
            answer, bill = serve(engine, [ask("a", tokens(150, i))])["a"]
            assert answer == expected[i]
            found += saved(bill, "store")
        assert engine.stats().tiers.refused <= 10
        engine.close()
    assert found > 0


def test_what_the_disk_cannot_keep_up_with_is_left_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ockham.cache.store.tiers.QUEUE_BYTES", 0)
    engine = with_store(checkpoint, tmp_path)
    serve(engine, [ask("a", tokens(100))])
    stats = engine.stats().tiers
    assert stats.skipped > 0
    assert (stats.disk_pages, stats.bytes_written) == (0, 0)
    engine.close()


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_what_the_pool_let_go_of_comes_back(checkpoint: Path, tmp_path: Path, tier: str) -> None:
    settings: dict[str, Any] = (
        {"swap_space": 0.01} if tier == "memory" else {"kv_store": str(tmp_path)}
    )
    engine = make_engine(checkpoint, **settings)
    expected = {str(i): serve(engine, [ask(str(i), tokens(90, i))])[str(i)][0] for i in range(4)}
    if tier == "disk":
        written(engine)
    empty_the_pool(engine)
    place = "swap" if tier == "memory" else "store"
    for i in range(4):
        found, bill = serve(engine, [ask(str(i), tokens(90, i))])[str(i)]
        assert found == expected[str(i)]
        assert saved(bill, place) == 80
    engine.close()


def test_memory_is_bounded(checkpoint: Path) -> None:
    probe = make_engine(checkpoint, swap_space=1.0)
    assert probe.tiers is not None
    page_bytes = probe.tiers.identity.payload_bytes
    engine = make_engine(checkpoint, swap_space=7.5 * page_bytes / (1 << 30))
    for i in range(4):
        serve(engine, [ask(str(i), tokens(90, i))])
        empty_the_pool(engine)
        assert engine.stats().tiers.memory_pages <= 7
    assert engine.stats().tiers.memory_pages == 7
    assert engine.stats().tiers.memory_bytes == 7 * page_bytes
    assert engine.stats().tiers.memory_evicted > 0
    # What went in last is whole from its beginning.
    assert saved(serve(engine, [ask("a", tokens(90, 3))])["a"][1], "swap") == 80
    engine.reuse.forget()
    assert engine.stats().tiers.memory_pages == 0


@pytest.mark.parametrize("tier", [{}, {"swap_space": 0.01}])
def test_preempted_sequences_come_back_by_moving(checkpoint: Path, tier: dict[str, Any]) -> None:
    """Six sequences in a pool for two: what is computed again is the waste of preemption."""
    plain = make_engine(checkpoint)
    page_bytes = sum(layout.page_bytes for layout in plain.model.layouts)
    engine = make_engine(checkpoint, kv_cache_memory_bytes=16 * page_bytes, **tier)
    wanted = [ask(str(i), tokens(40, i), max_tokens=70) for i in range(6)]
    expected, found = serve(plain, wanted), serve(engine, wanted)
    assert {n: a for n, (a, _) in found.items()} == {n: a for n, (a, _) in expected.items()}
    wasted = sum(b.wasted["preemption"].tokens for _, b in found.values() if b.wasted)
    preempted = engine.stats().preemptions
    assert preempted > 2
    if tier:
        assert wasted <= 16 * preempted  # the last page of each, which was not full
    else:
        assert wasted > 16 * preempted


@pytest.mark.skipif(core is None, reason="the native core was not built")
@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_windows_come_back_as_far_as_their_rows_see(tmp_path: Path, tier: str) -> None:
    checkpoint = tiny_mistral(tmp_path, vocab_size=VOCABULARY, window=24)
    settings: dict[str, Any] = (
        {"swap_space": 0.01} if tier == "memory" else {"kv_store": str(tmp_path / "store")}
    )
    plain = make_engine(checkpoint, reuse="none")
    engine = make_engine(checkpoint, **settings)
    prompt = tokens(150)
    first, _ = serve(engine, [ask("a", prompt)])["a"]
    if tier == "disk":
        written(engine)
    empty_the_pool(engine)
    found, bill = serve(engine, [ask("b", prompt)])["b"]
    assert found == first == serve(plain, [ask("b", prompt)])["b"][0]
    assert bill.prompt_tokens_computed <= 32
    for cut in (60, 100, 130):
        empty_the_pool(engine)
        other = [*prompt[:cut], *tokens(9, cut)]
        assert serve(engine, [ask("c", other)])["c"][0] == serve(plain, [ask("c", other)])["c"][0]
    engine.close()
