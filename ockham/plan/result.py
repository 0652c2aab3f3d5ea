"""What a plan found, as it is written and told."""

from __future__ import annotations

import msgspec

from ockham.plan.space import Point, Value

Figures = dict[str, float]
"""By metric: those of floors, and the goals of `GOALS`."""

GOALS = {
    "seconds": "seconds in which the engine works, for a request",
    "cost": "cost of these seconds, for a request",
    "bytes": "bytes of memory that weights and state take at most",
    "joules": "joules for a request",
}
"""What a plan may minimise."""


class Tried(msgspec.Struct, kw_only=True):
    """One configuration that was looked at.

    `verdict` is one of `default`, `chosen`, `holds`, `misses`, `undecided`, `slow` (it misses a
    bound on speed or memory), `unverified` (it held on the cases that chose it, and not on fresh
    ones), `refused`, `unmeasured`.
    """

    changes: dict[str, Value] = {}
    verdict: str = "unmeasured"
    why: str = ""
    predicted: Figures = {}
    measured: Figures = {}
    quality: Figures = {}
    cases: int = 0
    """Cases that it was judged on."""

    @property
    def point(self) -> Point:
        return Point.of(self.changes)


class Contribution(msgspec.Struct, kw_only=True):
    """What one change of the chosen configuration is worth: `goal` without it over with it (above
    1, it saves), and the quality without it."""

    setting: str
    value: Value
    goal_without: float
    quality_without: Figures = {}


class Plan(msgspec.Struct, kw_only=True):
    """A plan: the chosen configuration, all that was tried, and what it took."""

    version: int = 1
    made: str
    """The date and time, UTC."""
    model: str
    numerics_id: str
    machine: str
    workload: str
    requests: int
    rate: float | None
    floors: str
    goal: str
    default: Tried
    chosen: Tried
    tried: list[Tried]
    left_out: dict[str, str]
    """Choices that were not gone into, and why."""
    contributions: list[Contribution]
    words: list[str]
    """Why this one, sentence by sentence."""
    missed: list[str]
    """Bounds on speed and memory that the chosen configuration does not keep to, with what it has:
    no configuration does."""
    ended: str
    """Why the search ended: all was decided, or the time was up."""
    seconds: float
    others: float | None = None
    """The share of the processors' time that other programs took meanwhile; None if unknown."""
    space: int
    """Configurations that may be had, of what pays alone."""
    judged: int
    """Configurations whose quality was measured."""
    judged_cases: int
    timed: bool = False
    """Whether default and chosen were measured in turns, and not only predicted."""
    gain: float = 1.0
    """The goal by default over the goal as chosen, as predicted."""
    measured_gain: float | None = None
    measured_interval: tuple[float, float] | None = None

    @property
    def is_default(self) -> bool:
        return not self.chosen.changes


def frontier(tried: list[Tried], goal: str, metric: str = "kl") -> list[Tried]:
    """The configurations of those whose quality is known that no other one beats in both: the
    cheapest last."""
    known = [
        each
        for each in tried
        if goal in each.predicted and (metric in each.quality or each.verdict == "default")
    ]
    known.sort(key=lambda each: (each.quality.get(metric, 0.0), each.predicted[goal]))
    found: list[Tried] = []
    for each in known:
        if not found or each.predicted[goal] < found[-1].predicted[goal]:
            found.append(each)
    return found
