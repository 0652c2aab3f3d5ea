"""`ockham techniques measure` tells what it measures, and how far it is."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from ockham.cli.main import cli


def test_measuring_tells_how_far_it_is_on_stderr() -> None:
    args = ("techniques", "measure", "grammar", "--rounds", "2", "--json")
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("measuring drafter/grammar (1 of 1): The tokens that")
    for said in ("loading lab", "round 1 of 2: without it ", "round 2 of 2: "):
        assert said in result.stderr
        assert said not in result.stdout


def test_a_paper_is_told_with_the_techniques_that_it_became() -> None:
    result = CliRunner().invoke(cli, ("techniques", "papers", "341", "--json"))
    assert result.exit_code == 0, result.output
    (paper,) = json.loads(result.stdout)
    assert paper["fate"] == "built"
    assert paper["rows"] == ["keep/snapkv"]
    told = CliRunner().invoke(cli, ("techniques", "papers")).stdout.splitlines()
    assert len(told) == 229
    assert any(line.startswith("341 SnapKV") and "keep/snapkv" in line for line in told)


def test_papers_replace_no_page_that_is_not_theirs_and_need_the_figures(tmp_path: Path) -> None:
    page = tmp_path / "papers.md"
    args = ("techniques", "papers", "--page", str(page))
    result = CliRunner().invoke(cli, args)
    assert result.exit_code != 0
    assert "techniques.md, which has the figures" in " ".join(result.stderr.split())
    page.write_text("mine")
    result = CliRunner().invoke(cli, args)
    assert "is no page that `ockham techniques papers` wrote" in " ".join(result.stderr.split())
    assert page.read_text() == "mine"
