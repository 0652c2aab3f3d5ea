"""Every pair of exact techniques composes exactly: not one token differs.

All pairs take more than ten minutes, and more with every new technique: `make exact` runs them.
Else about PAIRS of them are run, drawn by their names, and what the tests below name.
"""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import pytest

from ockham.core import registry
from ockham.core.errors import ConfigError
from ockham.core.speculative import has_model
from ockham.kernels.native import core
from ockham.lab.evidence import Bench
from ockham.lab.evidence.compose import (
    Cell,
    Part,
    compose,
    engine_config_of,
    parts,
)
from ockham.lab.evidence.compose_page import composition_page, with_technique
from tests.exact.machine import EXAMPLES
from tests.helpers.registering import let_register

pytestmark = [
    pytest.mark.skipif(core is None, reason="the reference backend promises no bits"),
    pytest.mark.timeout(1200),  # the first test runs every pair of techniques
]


ALL = EXAMPLES >= 10
PAIRS = 250
NAMED = (
    ("engine/continuous-batching", "reuse/chunk"),
    ("reuse/chunk", "reuse/edit"),
    ("engine/continuous-batching", "search/superposed"),
    ("engine/fork", "format/int4"),
    ("engine/fork", "format/bf16"),
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(engine_config_of("lab"))


@pytest.fixture(scope="module")
def cells(bench: Bench) -> list[Cell]:
    return compose(bench, wanted=wanted)


def wanted(one: Part, other: Part) -> bool:
    """Whether a pair is run."""
    labels = (one.label, other.label)
    drawn = zlib.crc32(" ".join(sorted(labels)).encode()) % max(1, all_pairs() // PAIRS) == 0
    return ALL or drawn or labels in NAMED or "engine/preemption" in labels


@cache
def all_pairs() -> int:
    return len(parts()) * (len(parts()) + 1) // 2


def test_no_pair_changes_a_token(cells: list[Cell]) -> None:
    if ALL:
        assert len(cells) == all_pairs()
    else:  # some more by name
        assert PAIRS / 2 < len(cells) < 2 * PAIRS
    assert {label for cell in cells for label in (cell.one, cell.other)} == {
        part.label for part in parts()
    }
    for cell in cells:
        assert cell.refused or cell.identical, (cell.one, cell.other)


def test_the_page_of_the_documentation_is_of_these_techniques() -> None:
    page = (Path(__file__).parents[2] / "docs/composition.md").read_text()
    count = len(parts())
    assert f"Each of the {count * (count + 1) // 2} pairs of {count} techniques" in page
    for part in parts():
        assert f"`{part.label}`" in page


def test_pairs_with_preemption_preempt(bench: Bench, cells: list[Cell]) -> None:
    whole = bench.config.kv_cache_memory_bytes
    tight = [e for e in bench.engines() if e.config.kv_cache_memory_bytes != whole]
    assert len(tight) >= 7  # in small steps, forked, in each format, and with nothing else
    assert all(engine.scheduler.preemptions for engine in tight)


def test_only_two_of_the_same_seam_are_refused(cells: list[Cell]) -> None:
    """Drafters stand beside each other, unless each has a model of its own, or one is none."""
    alone = [part for part in parts() if not part.asks]
    asking = {part.label for part in parts() if part.asks}
    never = {part.label for part in parts() if part.refused}
    never.add("gate/recursions")  # for models whose layers run several times
    # What needs a codebook of the model's keys has none here.
    never |= {
        f"{each.seam}/{each.name}"
        for each in registry.techniques()
        if hasattr(each.cls, "codebooks") and each.seam == "pattern"
    }
    for cell in cells:
        if never & {cell.one, cell.other} or {cell.one, cell.other} <= asking:
            continue  # a request may be refused that asks for both
        same = [part for part in alone if part.label in (cell.one, cell.other)]
        refused = len(same) == 2 and same[0].seam == same[1].seam != "engine"
        if refused and same[0].seam == "drafter":
            names = {part.name for part in same}
            refused = "none" in names or all(
                has_model(registry.find("drafter", name)) for name in names
            )
        assert bool(cell.refused) == refused, (cell.one, cell.other)


def test_what_some_ask_for_changes_nothing_for_the_others(cells: list[Cell]) -> None:
    found = {(cell.one, cell.other): cell for cell in cells}
    chunk = found["engine/continuous-batching", "reuse/chunk"]
    assert chunk.asked
    assert chunk.identical
    assert "for who asks for nothing" in chunk.verdict
    assert found["reuse/chunk", "reuse/edit"].agreement is not None
    together = found["engine/continuous-batching", "search/superposed"]
    assert together.asked
    assert together.identical


def test_an_approximate_format_is_told_by_its_agreement(cells: list[Cell]) -> None:
    found = {(cell.one, cell.other): cell for cell in cells}
    int4 = found["engine/fork", "format/int4"]
    assert int4.agreement is not None
    assert int4.agreement < 1
    assert found["engine/fork", "format/bf16"].agreement is None
    assert "exact within the format" in int4.verdict


def test_a_technique_at_a_seam_that_had_none_is_listed_and_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_register(monkeypatch)

    @registry.register("placement", "in_place", exact=True)
    class InPlace:
        """Leaves everything in its place."""

    new = [part for part in parts() if part.seam == "placement"]
    assert [part.name for part in new] == ["in_place"]
    engine, other = parts()[0], next(part for part in parts() if part.label == "format/bf16")
    cells = compose(bench, [engine, other, *new])
    assert [cell.refused for cell in cells if cell.other == new[0].label] == [
        "no setting of an engine chooses a placement"
    ] * 3
    assert all(cell.identical for cell in cells if cell.other != new[0].label)
    assert "| no setting of an engine chooses a placement |" in composition_page(cells, "lab")


def test_the_page_lists_only_what_does_not_compose_exactly() -> None:
    cells = [
        Cell(one="a/x", other="a/x", exact=True, identical=True),
        Cell(one="a/x", other="b/y", exact=True, identical=False),
        Cell(one="a/x", other="c/z", exact=True, identical=True),
        Cell(one="b/y", other="b/y", exact=True, identical=True),
        Cell(one="b/y", other="c/z", exact=True, refused="a reason"),
        Cell(one="c/z", other="c/z", exact=True, identical=True),
    ]
    page = composition_page(cells, "lab")
    assert "Each of the 6 pairs of 3 techniques" in page
    assert "4 pairs do." in page
    assert "- `a/x` with `b/y`" in page
    assert "| a reason | `b/y` with `c/z` |" in page
    assert "`a/x` with `c/z`" not in page


def test_the_page_gives_the_shares_of_what_is_approximate() -> None:
    cells = [
        Cell(one="a/x", other="a/x", exact=True, identical=True),
        Cell(one="a/x", other="f/4", exact=False, identical=True, agreement=0.31),
        Cell(one="a/x", other="f/8", exact=False, identical=True, agreement=0.95),
        Cell(one="f/4", other="f/4", exact=False, identical=True, agreement=0.35),
        Cell(one="f/4", other="f/8", exact=False, identical=True, agreement=0.2),
        Cell(one="f/8", other="f/8", exact=False, identical=True, agreement=0.95),
    ]
    page = composition_page(cells, "lab")
    assert "| `f/4` | each exact technique | 31% to 35% |" in page
    assert "| `f/8` | each exact technique | 95% |" in page
    assert "| `f/4` | `f/8` | 20% |" in page
    assert "## Pairs that differ\n\nNone.\n" in page


def test_the_page_names_refused_pairs_in_few_words() -> None:
    refused = [("a", "b"), ("a", "c"), ("b", "c")]
    cells = [Cell(one=o, other=t, exact=True, refused="one each") for o, t in refused]
    star = [("d", "n"), ("e", "n"), ("n", "o")]
    cells += [Cell(one=o, other=t, exact=True, refused="none is none") for o, t in star]
    page = composition_page(cells, "lab")
    assert "| one each | any two of `a`, `b`, `c` |" in page
    assert "| none is none | `n` with any of `d`, `e`, `o` |" in page


def test_a_technique_is_added_to_a_page_as_if_it_had_been_there() -> None:
    def cell(one: str, other: str) -> Cell:
        if {one, other} == {"b/y", "n/w"}:
            return Cell(one=one, other=other, exact=True, refused="not these two")
        if "n/w" in (one, other) or "f/4" in (one, other):
            agreement = 0.2 if {one, other} == {"f/4", "n/w"} else 0.3 + len(one + other) / 100
            return Cell(one=one, other=other, exact=False, identical=True, agreement=agreement)
        return Cell(one=one, other=other, exact=True, identical=(one, other) != ("a/x", "b/y"))

    names = ["a/x", "b/y", "f/4", "n/w"]
    cells = [cell(one, other) for i, one in enumerate(names) for other in names[i:]]
    own = [each for each in cells if "n/w" in (each.one, each.other)]
    page = composition_page([each for each in cells if each not in own], "lab")
    found = with_technique(page, "n/w", own)
    assert sorted(found.splitlines()) == sorted(composition_page(cells, "lab").splitlines())
    with pytest.raises(ConfigError, match="tells of it already"):
        with_technique(found, "n/w", own)
    with pytest.raises(ConfigError, match="that are no more"):
        with_technique(page, "n/w", own[1:])
