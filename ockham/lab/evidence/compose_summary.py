"""The top of the page of pairs: what is lost together, and what cannot be together, in short."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from statistics import median
from typing import NamedTuple

TITLE = "## In short"
BEFORE = "## Pairs that differ"
WORST = 6
"""Pairs that are named: those that lose most together."""
NAMED = 3
"""More techniques of one seam than that are counted, and not named."""

TOGETHER = """An approximate technique loses nothing more beside an exact one. Two approximate ones
may lose more than each alone. Below are points of tokens that are the model's own, less than the
lowest share that the worse of the two has beside exact techniques: the median over the pairs of two
seams, and the worst pair."""


class Lost(NamedTuple):
    """Two approximate techniques: the share of tokens that are the model's own with each alone, at
    the lowest, with both, and how much that is below the worse alone, in points."""

    one: str
    other: str
    one_alone: int
    other_alone: int
    both: int

    @property
    def points(self) -> int:
        return max(0, min(self.one_alone, self.other_alone) - self.both)

    @property
    def seams(self) -> tuple[str, str]:
        return seam_of(self.one), seam_of(self.other)


def with_summary(page: str) -> str:
    """The page with a summary of what it lists; one that it has is made anew."""
    page = re.sub(rf"(?ms)^{TITLE}\n.*?(?=^## )", "", page)
    return page.replace(f"{BEFORE}\n", f"{summary_of(page)}\n{BEFORE}\n", 1)


def summary_of(page: str) -> str:
    """The summary, from the tables of the page."""
    pairs, reasons = lost_together(page), refusals(page)
    lines = [TITLE, ""]
    if pairs:
        lines += [*TOGETHER.splitlines(), "", *_matrix(pairs), "", *_worst(pairs), ""]
    if reasons:
        lines += ["| cannot be together | why |", "|---|---|", *_grouped(reasons), ""]
    if not pairs and not reasons:
        lines += ["All that ran can be had together, and loses nothing more.", ""]
    return "\n".join(lines)


def lost_together(page: str) -> list[Lost]:
    """The pairs of two approximate techniques that a page tells of."""
    table = _section(page, "Approximate techniques")
    alone = {
        name: int(low)
        for name, low in re.findall(
            r"(?m)^\| `(.+?)` \| each exact technique \| (\d+)%.* \|$", table
        )
    }
    rows = re.findall(r"(?m)^\| `(.+?)` \| `(.+?)` \| (\d+)% \|$", table)
    return [
        Lost(one, other, alone[one], alone[other], int(both))
        for one, other, both in rows
        if one in alone and other in alone
    ]


def refusals(page: str) -> list[tuple[str, str]]:
    """The reasons that a page has for refusing pairs, and which pairs, in its words."""
    table = _section(page, "Not together")
    return re.findall(r"(?m)^\| (.+) \| (.*`.*) \|$", table)


def seam_of(label: str) -> str:
    return label.partition("/")[0]


def _section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _matrix(pairs: Sequence[Lost]) -> list[str]:
    """A row and a column for each seam."""
    seams = list(dict.fromkeys(seam for pair in pairs for seam in pair.seams))
    points: dict[frozenset[str], list[int]] = {}
    for pair in pairs:
        points.setdefault(frozenset(pair.seams), []).append(pair.points)
    cells: Mapping[tuple[str, str], str] = {
        (one, other): f"{median(found):.0f}, {max(found)}"
        for one, other in combinations_with_replacement(seams, 2)
        if (found := points.get(frozenset((one, other))))
    }
    lines = [f"| | {' | '.join(seams)} |", "|---" * (len(seams) + 1) + "|"]
    for number, row in enumerate(seams):
        said = [cells.get((row, seam), "") if at >= number else "" for at, seam in enumerate(seams)]
        lines.append(f"| {row} | {' | '.join(said)} |")
    return lines


def _worst(pairs: Sequence[Lost]) -> list[str]:
    worst = sorted(pairs, key=lambda pair: -pair.points)[:WORST]
    lines = ["| lose most together | alone | alone | together |", "|---|---|---|---|"]
    return lines + [
        f"| `{pair.one}` with `{pair.other}` | {pair.one_alone}% | {pair.other_alone}% | "
        f"{pair.both}% |"
        for pair in worst
    ]


def _grouped(refused: Sequence[tuple[str, str]]) -> list[str]:
    """A row for each reason, whichever techniques it names."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for reason, which in refused:
        groups.setdefault(_general(reason, which), []).append((reason, which))
    lines = []
    for general, rows in groups.items():
        reason = rows[0][0] if len(rows) == 1 else general
        lines.append(f"| {_which([which for _, which in rows])} | {reason.rstrip('.')} |")
    return lines


def _general(reason: str, which: str) -> str:
    """A reason with seams in place of the techniques that it is about."""
    for label in sorted(set(_labels(which)), key=len, reverse=True):
        seam, _, name = label.partition("/")
        quoted = rf"(?:(?:the )?{seam} )'{re.escape(name)}'"
        plain = rf"(?<![\w`=:/]){re.escape(name)}(?![\w=+])"
        reason = re.sub(f"{quoted}|{plain}", f"a `{seam}`", reason)
    return reason


def _which(rows: Sequence[str]) -> str:
    """The pairs of some rows in few words."""
    if len(rows) == 1 and rows[0].startswith("any two of "):
        return f"any two of {_names(_labels(rows[0]))}"
    firsts: dict[str, None] = {}
    others: dict[str, None] = {}
    for row in rows:
        labels = _labels(row)
        one, rest = (
            (labels[:1], labels[1:]) if " with any of " in row else (labels[::2], labels[1::2])
        )
        firsts |= dict.fromkeys(one)
        others |= dict.fromkeys(rest)
    return f"{_names([*firsts])} with {_names([*others])}"


def _names(labels: Sequence[str]) -> str:
    """Techniques by name, or how many of each seam."""
    by_seam: dict[str, list[str]] = {}
    for label in labels:
        by_seam.setdefault(seam_of(label), []).append(label)
    if len(by_seam) > NAMED:
        return f"{len(labels)} others"
    return ", ".join(
        f"{len(found)} of `{seam}`"
        if len(found) > NAMED
        else ", ".join(f"`{label}`" for label in found)
        for seam, found in by_seam.items()
    )


def _labels(which: str) -> list[str]:
    return re.findall(r"`(.+?)`", which)
