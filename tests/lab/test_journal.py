"""A journal keeps what was done, and refuses what it does not belong to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from ockham.core.errors import ConfigError
from ockham.lab.journal import Journal


class Line(msgspec.Struct):
    number: int


def numbers(path: Path, **settings: object) -> list[int]:
    with Journal(path, settings, Line) as journal:
        return [line.number for line in journal.results]


def test_results_are_there_when_the_run_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, {"model": "lab", "interval": (0.5, 1.0)}, Line) as journal:
        journal.add(Line(1))
        journal.add(Line(2))
    assert numbers(path, model="lab", interval=(0.5, 1.0)) == [1, 2]


def test_a_result_is_on_file_before_the_next_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, {}, Line) as journal:
        journal.add(Line(1))
        assert path.read_text().endswith('{"number":1}\n')


def test_a_line_that_a_kill_cut_short_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path, {}, Line) as journal:
        journal.add(Line(1))
    with path.open("a") as file:
        file.write('{"numb')
    with Journal(path, {}, Line) as journal:
        assert journal.results == [Line(1)]
        journal.add(Line(3))
    assert numbers(path) == [1, 3]


def test_a_head_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"kind":"ock')
    assert numbers(path, seed=1) == []
    assert numbers(path, seed=1) == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert numbers(path, seed=1, model="lab") == []
    with pytest.raises(ConfigError, match=r"with seed 1, but this run has 2; run with the same"):
        numbers(path, seed=2, model="lab")
    with pytest.raises(ConfigError, match=r"with n None, but this run has 4"):
        numbers(path, seed=1, model="lab", n=4)


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nof today\n")
    with pytest.raises(ConfigError, match="is no file of an evaluation"):
        numbers(path)
    assert path.read_text() == "my notes\nof today\n"
    with pytest.raises(ConfigError, match="cannot be a file of an evaluation"):
        numbers(tmp_path / "missing" / "run.jsonl")


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(ConfigError, match=r"run\.jsonl cannot be written \(No space left"):
        numbers(tmp_path / "run.jsonl")


def test_without_a_path_nothing_is_written() -> None:
    with Journal(None, {}, Line) as journal:
        journal.add(Line(1))
        assert journal.results == [Line(1)]
