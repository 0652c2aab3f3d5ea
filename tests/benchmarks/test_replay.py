"""The replay of two trees: equal trees give equal bytes, and a difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import replay

REPOSITORY = Path(__file__).parents[2]


def test_a_tree_gives_the_same_bytes_twice(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay, "CONFIGURATIONS", {"plain": {}})
    assert replay.main([str(REPOSITORY), str(REPOSITORY)]) == 0
    assert f"{replay.REQUESTS} requests, 0 with other bytes" in capfd.readouterr().out


def test_one_other_byte_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay, "CONFIGURATIONS", {"plain": {}})
    told = {"old": ["a", "b", "c"], "new": ["a", "x", "c"]}
    monkeypatch.setattr(replay, "_digests", lambda tree, name: told[tree.name])
    assert replay.main(["old", "new"]) == 1
    assert "differing: [1]" in capfd.readouterr().out


def test_every_kind_of_request_is_answered_differently() -> None:
    """Otherwise equal bytes would say little."""
    answers = list(replay.answers("plain"))
    assert len(set(answers)) == replay.REQUESTS
