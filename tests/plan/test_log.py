"""The log of measurements: kept as it comes, and no plan ends by a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ockham.core.errors import ConfigError
from ockham.lab.journal import Journal
from ockham.plan.expecting import UNKNOWN_LOSS, Expectations, alike, losses_of
from ockham.plan.log import Log, Record, digest
from ockham.plan.space import Point

NEAR: dict[str, str | float] = {"model": "m", "prompt_tokens": 100.0, "answer_tokens": 10.0}


def seen(context: str, changes: dict[str, str], *kl: float) -> Record:
    return Record(context=context, kind="distance", changes={**changes}, case="c/0/0", kl=[*kl])


def test_what_is_logged_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.add(seen("a", {"keep": "recent"}, 0.1, 0.3))
    log.describe("a", NEAR)
    log.describe("a", NEAR)
    log.close()
    again = Log(path)
    assert [record.kind for record in again.records] == ["distance", "context"]
    (record,) = again.of("a", "distance")
    assert record.point == Point((("keep", "recent"),))
    assert record.kl == [0.1, 0.3]
    assert not [*again.of("b", "distance")]


def test_a_file_that_is_no_log_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(ConfigError, match="no file of a plan's log"):
        Log(path)
    assert path.read_text() == "mine\n"


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    log = Log(tmp_path / "log.jsonl", told.append)

    def full(journal: Journal[Record], result: Record) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "add", full)
    for _ in range(3):
        log.add(seen("a", {"keep": "recent"}, 0.1))
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert len(log.records) == 3


def test_a_digest_is_of_the_facts_whatever_their_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_expected_losses_add_up() -> None:
    log = Log()
    log.add(seen("here", {"keep": "recent"}, 0.01))
    log.add(seen("here", {"gate": "skip"}, 0.03))
    expected = Expectations(log, "here", "kl")
    both = Point.of({"keep": "recent", "gate": "skip"})
    assert expected.of(both).median == pytest.approx(0.04)
    assert expected.of(both, [("gate", "skip")]).median == pytest.approx(0.01)
    assert expected.of(both).within(0.4) > 0.99
    assert expected.of(both).within(0.004) < 0.01
    assert expected.of(Point.of({"keep": "other"})).median == UNKNOWN_LOSS


def test_what_was_seen_only_beside_others_is_what_is_left_to_it() -> None:
    log = Log()
    log.add(seen("here", {"keep": "recent"}, 0.01))
    log.add(seen("here", {"keep": "recent", "gate": "skip"}, 0.05))
    expected = Expectations(log, "here", "kl")
    assert expected.of(Point.of({"gate": "skip"})).median == pytest.approx(0.04)


def test_contexts_that_are_alike_count_most() -> None:
    log = Log()
    far: dict[str, str | float] = {**NEAR, "model": "other", "prompt_tokens": 9000.0}
    for context, facts, loss in (("near", NEAR, 0.001), ("far", far, 0.5), ("here", NEAR, 0.0)):
        log.describe(context, facts)
        if loss:
            log.add(seen(context, {"keep": "recent"}, loss))
    assert alike(NEAR, NEAR) == 1.0
    assert alike(NEAR, far) < 0.1
    point = Point.of({"keep": "recent"})
    here = Expectations(log, "here", "kl").of(point)
    assert here.median < 0.003
    assert here.spread > Expectations(log, "near", "kl").of(point).spread


def test_losses_of_scores_are_beside_the_exact_ones() -> None:
    def scored(changes: dict[str, str], case: str, score: float) -> Record:
        return Record(
            context="a", kind="score", changes={**changes}, case=case, task="recall", score=score
        )

    records = [
        *(scored({}, f"recall/{n}/0", 1.0) for n in range(4)),
        *(scored({"keep": "recent"}, f"recall/{n}/0", float(n > 0)) for n in range(4)),
    ]
    losses = dict(losses_of(records, "recall"))
    assert losses[Point.of({"keep": "recent"})] == pytest.approx(0.25)
    assert losses[Point()] == 0.0
