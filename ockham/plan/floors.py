"""What a plan must keep: bounds on quality, on latency and on memory.

A floor is `METRIC>=VALUE` or `METRIC<=VALUE`. Metrics of quality compare a configuration with the
exact one: `kl` (mean KL divergence in nats), `kl_p99`, `agreement` (share of positions with the
same likeliest token). A task's name is its score, as a share of right answers, or in percent of
what the exact configuration scores ("recall>=95%"). Metrics of speed are `ttft` (time to first
token), `tpot` (time per output token) and `e2e` (until the last token), in seconds, at a
percentile: `ttft_p95`; `tokens_per_second`; `memory` is the bytes that the engine may hold
("memory<=2G").
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from ockham.core.errors import ConfigError

Relation = Literal[">=", "<="]

_DISTANCES: dict[str, Relation] = {"kl": "<=", "kl_p99": "<=", "agreement": ">="}
_SPEEDS: dict[str, Relation] = {
    **{f"{name}_p{p}": "<=" for name in ("ttft", "tpot", "e2e") for p in (50, 95, 99)},
    "tokens_per_second": ">=",
    "memory": "<=",
}
_FLOOR = re.compile(r"\s*([\w.-]+)\s*(>=|<=)\s*(\S+)\s*")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Floor(msgspec.Struct, frozen=True):
    """One bound. `relative` bounds a task's score as a share of the exact configuration's."""

    metric: str
    relation: Relation
    value: float
    relative: bool = False

    @property
    def kind(self) -> Literal["distance", "score", "speed"]:
        """What has to be measured for it."""
        if self.metric in _DISTANCES:
            return "distance"
        return "speed" if self.metric in _SPEEDS else "score"

    def slack(self, value: float) -> float:
        """How far a value is on the right side, as a share of the bound; negative where it misses
        it. Nothing is known of NaN, which misses everything."""
        if math.isnan(value):
            return -math.inf
        distance = value - self.value if self.relation == ">=" else self.value - value
        return distance / abs(self.value) if self.value else distance

    def holds(self, value: float) -> bool:
        """Whether a value keeps to it."""
        return self.slack(value) >= 0

    def __str__(self) -> str:
        value = f"{self.value * 100:.12g}%" if self.relative else f"{self.value:.12g}"
        return f"{self.metric}{self.relation}{value}"


class Floors(msgspec.Struct, frozen=True):
    """All bounds of a plan, in the order in which they were given."""

    every: tuple[Floor, ...] = ()

    @property
    def distances(self) -> list[Floor]:
        return [each for each in self.every if each.kind == "distance"]

    @property
    def scores(self) -> list[Floor]:
        return [each for each in self.every if each.kind == "score"]

    @property
    def speeds(self) -> list[Floor]:
        return [each for each in self.every if each.kind == "speed"]

    @property
    def of_quality(self) -> list[Floor]:
        """Without any of these, a plan may only be exact."""
        return [*self.distances, *self.scores]

    def missed(
        self, values: Mapping[str, float], among: Iterable[Floor] | None = None
    ) -> list[Floor]:
        """The bounds that values, by metric, do not keep to. A metric that has no value is no
        miss."""
        chosen = self.every if among is None else among
        return [f for f in chosen if f.metric in values and not f.holds(values[f.metric])]

    def __str__(self) -> str:
        return ", ".join(map(str, self.every))


def parse_floors(text: str, tasks: Sequence[str]) -> Floors:
    """Floors as they are written: "kl<=0.02, recall>=95%, ttft_p95<=0.5". `tasks` are the names
    that have scores.

    Raises ConfigError for what is no bound, a metric that does not exist or is bounded from the
    wrong side, a value that it cannot have, and bounds that contradict each other.
    """
    found = [_floor(piece, tasks) for piece in text.split(",") if piece.strip()]
    tightest: dict[tuple[str, bool], Floor] = {}
    for floor in found:
        key = (floor.metric, floor.relative)
        other = tightest.get(key)
        if other is not None and other.value != floor.value:
            raise ConfigError(
                f"the floor bounds {floor.metric} twice, by {other} and by {floor}; leave one out."
            )
        tightest[key] = floor
    floors = Floors(tuple(tightest.values()))
    _check_percentiles(floors)
    _check_distances(floors)
    return floors


def _floor(piece: str, tasks: Sequence[str]) -> Floor:
    match = _FLOOR.fullmatch(piece)
    if match is None:
        raise ConfigError(
            f"{piece.strip()!r} is no floor; write METRIC>=VALUE or METRIC<=VALUE, such as "
            "kl<=0.02."
        )
    metric, relation, text = match[1], match[2], match[3]
    sides = {**_DISTANCES, **_SPEEDS, **dict.fromkeys(tasks, ">=")}
    if metric not in sides:
        raise ConfigError(
            f"the floor names {metric!r}, which is no metric; there are {', '.join(_DISTANCES)}, "
            f"{', '.join(_SPEEDS)}, and the tasks {', '.join(tasks)}."
        )
    if relation != sides[metric]:
        raise ConfigError(
            f"a floor of {metric} is {metric}{sides[metric]}VALUE, got {piece.strip()}."
        )
    relative = text.endswith("%") and metric in tasks
    value = _value(metric, text, relative)
    if not math.isfinite(value) or value < 0 or (metric in _SPEEDS and value == 0):
        raise ConfigError(f"{piece.strip()}: the value must be a positive number.")
    shares = metric == "agreement" or metric in tasks
    if shares and not relative and value > 1:
        raise ConfigError(
            f"{piece.strip()}: {metric} is a share from 0 to 1, which nothing above 1 can reach."
        )
    return Floor(metric, relation, value, relative)  # type: ignore[arg-type]


def _value(metric: str, text: str, relative: bool) -> float:
    units = _UNITS if metric == "memory" else {"": 1}
    number = text[:-1] if relative else text
    if metric == "memory":
        number = re.sub(r"(?i)(?:ib|b)$", "", number)
    unit = number[-1:].lower() if number[-1:].lower() in units and number[-1:] else ""
    try:
        return float(number.removesuffix(number[-1:]) if unit else number) * (
            0.01 if relative else units[unit]
        )
    except ValueError:
        more = ", 512M or 2G" if metric == "memory" else ""
        raise ConfigError(f"{metric} is bounded by {text!r}; write a number{more}.") from None


def _check_percentiles(floors: Floors) -> None:
    """A higher percentile is never below a lower one."""
    for name in ("ttft", "tpot", "e2e"):
        own = {f.metric: f for f in floors.speeds if f.metric.startswith(f"{name}_p")}
        order = [own[key] for key in (f"{name}_p50", f"{name}_p95", f"{name}_p99") if key in own]
        for lower, higher in itertools.pairwise(order):
            if higher.value < lower.value:
                raise ConfigError(
                    f"{lower} and {higher} contradict each other: {higher.metric} is never below "
                    f"{lower.metric}, so that {lower} says nothing; leave it out."
                )
    least = {f.metric: f for f in floors.speeds if f.metric.startswith(("ttft", "e2e"))}
    for p in (50, 95, 99):
        first, last = least.get(f"ttft_p{p}"), least.get(f"e2e_p{p}")
        if first is not None and last is not None and last.value < first.value:
            raise ConfigError(
                f"{first} and {last} contradict each other: a text is whole no sooner than its "
                "first token is there; leave one out."
            )


def _check_distances(floors: Floors) -> None:
    own = {floor.metric: floor for floor in floors.distances}
    if "kl" in own and "kl_p99" in own and own["kl_p99"].value < own["kl"].value:
        raise ConfigError(
            f"{own['kl']} and {own['kl_p99']} contradict each other: one position in a hundred may "
            "have less than the mean only if nearly all have nothing; leave one out."
        )
