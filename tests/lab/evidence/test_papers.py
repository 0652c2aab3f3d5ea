"""The page of papers names what there is, and has no figure of its own."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from ockham.cli.main import cli
from ockham.core.errors import ConfigError
from ockham.core.registry import techniques
from ockham.lab.evidence.page import verdicts
from ockham.lab.evidence.papers import paper_of, papers, papers_page, row_names, rows_of

DOCS = Path(__file__).parents[3] / "docs"
COVERED = 229


def _exists(command: str) -> bool:
    """Whether words name a command of the command line, and flags that it has."""
    found: click.Command = cli
    words = command.split()[1:]
    while words and isinstance(found, click.Group):
        next_ = found.get_command(click.Context(found), words[0])
        if next_ is None:
            return False
        found, words = next_, words[1:]
    flags = {flag for each in found.params for flag in each.opts}
    return set(words) <= flags


def test_each_paper_of_the_list_stands_once_in_order() -> None:
    numbers = [paper.number for paper in papers().papers]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == COVERED


def test_each_paper_that_a_technique_names_is_on_the_page() -> None:
    page = (DOCS / "papers.md").read_text()
    for technique in techniques():
        if technique.paper is None:
            continue
        kind, _, number = technique.paper.rpartition(":")
        if kind:
            assert f"/{number})" in page, technique.name
        else:
            assert paper_of(int(number)).fate in ("built", "later"), technique.name
            assert f"{technique.seam}/{technique.name}" in rows_of(paper_of(int(number)))


def test_each_paper_has_a_technique_a_command_or_a_reason() -> None:
    known, subjects = row_names(), papers().subjects
    for paper in papers().papers:
        rows = rows_of(paper)
        assert set(rows) <= known, paper.name
        if paper.fate == "built":
            assert rows or paper.commands, paper.name
        elif paper.fate == "not built":
            assert paper.note, paper.name
        if paper.fate in ("later", "elsewhere"):
            assert paper.subject in subjects, paper.name
        else:
            assert not paper.subject, paper.name
        for command in paper.commands:
            if command.startswith("ockham "):
                assert _exists(command), command


def test_the_page_is_what_the_command_writes_from_the_rows_that_there_are() -> None:
    """Write it with `ockham techniques papers --page docs/papers.md` after papers.json, a
    technique's paper or a row of docs/techniques.md has changed."""
    measured = (DOCS / "techniques.md").read_text()
    assert (DOCS / "papers.md").read_text() == papers_page(measured)


def test_a_figure_is_the_row_s_own() -> None:
    measured = (DOCS / "techniques.md").read_text()
    told = verdicts(measured)["keep/snapkv"]
    changed = papers_page(measured.replace(told, "saves 12% of nothing"))
    assert told not in changed
    row = next(line for line in changed.splitlines() if line.startswith("| 341 "))
    assert row.endswith(": saves 12% of nothing |")
    without = papers_page(re.sub(r"(?m)^\| \[`keep/snapkv`\].*\n", "", measured))
    row = next(line for line in without.splitlines() if line.startswith("| 341 "))
    assert row.endswith("`keep/snapkv`: not yet |")


def test_a_number_that_is_not_covered_is_refused() -> None:
    with pytest.raises(ConfigError, match="covers no paper 1;"):
        paper_of(1)
