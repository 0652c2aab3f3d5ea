"""The page of pairs begins with what is lost together, and what cannot be together."""

from __future__ import annotations

from pathlib import Path

from ockham.lab.evidence.compose import Cell
from ockham.lab.evidence.compose_page import composition_page, with_technique
from ockham.lab.evidence.compose_summary import lost_together, summary_of, with_summary

DOCS = Path(__file__).parents[3] / "docs"
WHY = "d drops cells, and {} chooses among blocks; a request can have one of the two."


def cell(one: str, other: str, agreement: float | None = None, refused: str | None = None) -> Cell:
    return Cell(
        one=one,
        other=other,
        exact=agreement is None,
        refused=refused,
        identical=None if refused else True,
        agreement=agreement,
    )


CELLS = [
    cell("engine/fork", "engine/fork"),
    cell("engine/fork", "format/f", 0.60),
    cell("engine/fork", "gate/g", 0.80),
    cell("engine/fork", "keep/d", 0.90),
    cell("format/f", "format/f", 0.62),
    cell("format/f", "gate/g", 0.45),
    cell("format/f", "keep/d", 0.61),
    cell("gate/g", "gate/g", 0.80),
    cell("gate/g", "keep/d", 0.70),
    cell("keep/d", "keep/d", 0.90),
    cell("keep/d", "pattern/p", refused=WHY.format("p")),
    cell("keep/d", "pattern/q", refused=WHY.format("q")),
]


def test_what_two_lose_together_is_against_the_worse_alone() -> None:
    found = {(pair.one, pair.other): pair for pair in lost_together(composition_page(CELLS, "lab"))}
    assert found["format/f", "gate/g"].points == 60 - 45
    assert found["format/f", "keep/d"].points == 0  # more than the worse alone
    assert found["gate/g", "keep/d"].points == 80 - 70
    assert len(found) == 3


def test_the_summary_has_seams_and_the_worst_pairs() -> None:
    lines = composition_page(CELLS, "lab").splitlines()
    assert "| format |  | 15, 15 | 0, 0 |" in lines
    assert "| gate |  |  | 10, 10 |" in lines
    assert "| `format/f` with `gate/g` | 60% | 80% | 45% |" in lines


def test_reasons_that_differ_by_a_name_are_one() -> None:
    lines = composition_page(CELLS, "lab").splitlines()
    general = "a `keep` drops cells, and a `pattern` chooses among blocks"
    rows = [line for line in lines if general in line]
    assert rows == [
        f"| `keep/d` with `pattern/p`, `pattern/q` | {general}; a request can have one of the two |"
    ]


def test_a_technique_that_is_added_is_in_the_summary() -> None:
    page = composition_page(CELLS, "lab")
    names = ("engine/fork", "format/f", "gate/g", "keep/d", "pattern/p", "pattern/q")
    assert "`pattern/q`" not in page.partition("## What was paired")[2]  # it was only ever second
    shares = (0.9, 0.3, 0.8, 0.9)
    added = [cell(n, "verifier/v", share) for n, share in zip(names, shares, strict=False)]
    page = with_technique(page, "verifier/v", [*added, cell("verifier/v", "verifier/v", 0.95)])
    assert "| `format/f` with `verifier/v` | 60% | 90% | 30% |" in page.splitlines()
    assert page.count("## In short") == 1


def test_pages_without_anything_to_tell_say_so() -> None:
    page = composition_page([cell("engine/fork", "engine/fork")], "lab")
    assert "All that ran can be had together" in summary_of(page)


def test_the_page_of_the_documentation_has_the_summary_of_its_tables_near_its_top() -> None:
    page = (DOCS / "composition.md").read_text()
    assert page == with_summary(page)
    assert page.splitlines().index("## Pairs that differ") < 60
