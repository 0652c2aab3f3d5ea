"""How long a step of decoding takes with so many rows, learned from the steps that are run.

A prediction needs no more than this: what the engine does next is what it did a moment ago, with a
few rows more or less. Steps without drafts say how fast the machine is now, which drifts, and with
the length of the contexts; steps with drafts say what so many rows cost beside that.
"""

from __future__ import annotations

import numpy as np

_SLOPE, _STEEP, _BEND = 0.06, 0.125, 8
"""What a row adds to a step, in steps of one row, as long as nothing has been measured: little up
to so many rows, which one reading of the weights serves; beyond them arithmetic takes longer than
reading. Between weights of 4 bits (0.07 and 0.17) and of 8 (0.03 and 0.08)."""
_KNOTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows whose ratio is learned; between them it is linear."""
_LEAST_SCALE, _MOST_SCALE = 0.2, 5.0
"""Outside the measured range, a row's cost is extrapolated from the prior, scaled by a factor
clamped to this range."""
_PACE, _RATIO = 0.2, 0.15
"""How much of what a step says is believed at once."""
_FIRST = 3
"""Plain steps before anything is drafted: one may be held up."""
_FRESH = 48
"""Steps with drafts after which a plain one is taken again, because the machine drifts."""
_BESIDE = 4
"""Steps with drafts in between, up to which two plain steps are taken to be beside each other."""
_FURTHEST = 2.0
"""A step that took more than so many times what was expected was held up by something else."""


class _Ratios:
    """The seconds of steps by their rows, in those of a step of one row."""

    def __init__(self) -> None:
        knots = np.array(_KNOTS, np.float64)
        over = np.maximum(knots - _BEND, 0.0)
        self._prior = 1.0 + _SLOPE * (knots - over - 1.0) + _STEEP * over
        self._at = self._prior.copy()
        self._seen = np.zeros(len(_KNOTS), np.int64)
        self.version = 0

    def of(self, first: int, count: int = 1) -> list[float]:
        """Those of `first`, `first + 1`, ... rows, `count` of them."""
        found: list[float] = np.interp(np.arange(first, first + count), _KNOTS, self._at).tolist()
        return found

    def seen(self, rows: int) -> bool:
        """Whether steps of about so many rows have been seen."""
        knot = _nearest(rows)
        return knot is None or bool(self._seen[knot])

    def trust(self, rows: int) -> None:
        """What is thought of so many rows is right: the others are held against it."""
        knot = _nearest(rows)
        if knot is not None:
            self._seen[knot] += 1

    def learn(self, rows: int, ratio: float) -> None:
        """A step of so many rows took so long."""
        knot = _nearest(rows)
        if knot is None:
            return
        # What rows between two knots say, the nearest takes as if it had been said of it.
        said = ratio + self._at[knot] - self.of(rows)[0]
        believed = max(_RATIO, 1.0 / (2 + self._seen[knot]))
        self._seen[knot] += 1
        self._at[knot] += believed * (said - self._at[knot])
        self.version += 1
        self._straighten()

    def _straighten(self) -> None:
        """Put the knots that were never seen on the line between those that were, and before them
        on the line of the first two. Beyond them, they follow what was first thought, as much
        steeper or flatter as that was so far."""
        seen = np.flatnonzero(self._seen)
        first, last = int(seen[0]), int(seen[-1])
        knots, prior = np.array(_KNOTS, np.float64), self._prior
        self._at[first:last] = np.interp(knots[first:last], knots[seen], self._at[seen])
        low, high = float(self._at[first]), float(self._at[last])
        if first < last:
            second = int(seen[1])
            slope = (self._at[second] - low) / (knots[second] - knots[first])
            scale = (high - low) / (prior[last] - prior[first])
        elif first:
            slope = (low - 1.0) / (knots[first] - 1.0)
            scale = (low - 1.0) / (prior[first] - 1.0)
        else:
            slope = scale = 1.0
        self._at[:first] = np.maximum(1.0, low - max(slope, 0.0) * (knots[first] - knots[:first]))
        scale = min(max(scale, _LEAST_SCALE), _MOST_SCALE)
        self._at[last + 1 :] = high + scale * (prior[last + 1 :] - prior[last])


def _nearest(rows: int) -> int | None:
    """The place of the knot that takes what a step of so many rows says; None beyond the last."""
    knot = int(np.searchsorted(_KNOTS, rows))
    if knot == len(_KNOTS):
        return None
    return knot - 1 if knot and _KNOTS[knot] - rows > rows - _KNOTS[knot - 1] else knot


class Tempo:
    """Seconds of steps of decoding: those of plain ones, and those with drafts."""

    def __init__(self) -> None:
        self._pace = 0.0
        self._plain, self._drafted = _Ratios(), _Ratios()
        self._before = 0
        """Sequences of the last plain step."""
        self._ratio = 1.0
        """Of a plain step of so many."""
        self._worth: dict[int, float] = {}
        self._known_of = (0, 0)
        self._plain_steps = self._drafted_since = 0
        """Plain steps so far, and steps with drafts since the last that was believed of them."""
        self._settled = True
        """Whether the last step was a plain one."""

    @property
    def known(self) -> bool:
        """Whether a plain step has been seen."""
        return self._pace > 0.0

    def stale(self, sequences: int) -> bool:
        """Whether a plain step should be seen, before anything is held against one."""
        few = self._plain_steps < _FIRST or not self._plain.seen(sequences)
        return few or self._drafted_since >= _FRESH

    def plain(self, sequences: int) -> float:
        """Seconds of a step that gives each of so many sequences one token."""
        same = sequences == self._before
        return self._pace * (self._ratio if same else self._plain.of(sequences)[0])

    def observe_plain(self, sequences: int, seconds: float, ended: bool = False) -> None:
        """A step without drafts took so long. The first after another kind of step makes anew what
        plain ones share, and one with which a sequence `ended` does more than that; neither is
        believed."""
        self._plain_steps += 1
        settled, self._settled = self._settled and not ended, not ended
        if self.known and not settled:
            return
        since, self._drafted_since = self._drafted_since, 0
        drifted = since > _BESIDE and self._plain.seen(sequences)
        if self.known and (sequences == self._before or drifted):
            ratio = self._plain.of(sequences)[0]
            self._before, self._ratio = sequences, ratio
            believed = max(_PACE, min(0.5, since / _FRESH))
            self._pace *= 1.0 + believed * (_bounded(seconds / self._pace, ratio) / ratio - 1.0)
            return
        ratio = self._plain.of(sequences)[0]
        if self.known:
            # Two steps beside each other: what differs is their number, not the machine.
            self._plain.learn(sequences, _bounded(seconds / self._pace, ratio))
            ratio = self._plain.of(sequences)[0]
        else:
            self._pace = seconds / ratio
            self._plain.trust(sequences)
        self._before, self._ratio = sequences, ratio

    def interrupt(self) -> None:
        """A step did something else than decoding."""
        self._settled = False

    def observe_drafted(self, rows: int, seconds: float) -> float:
        """A step of so many rows, drafted ones among them, took so long. Gives the seconds of it
        that are believed: what is far from all that was seen was something else's doing."""
        self._drafted_since += 1
        self._settled = False
        if not self.known:
            return seconds
        said = _bounded(seconds / self._pace, self._drafted.of(rows)[0])
        self._drafted.learn(rows, said)
        return said * self._pace

    def costs(self, sequences: int, room: int) -> list[float]:
        """Of steps of so many sequences with 0, 1, ... `room` drafted rows, up to a common factor;
        never falling."""
        drafted = self._drafted.of(sequences + 1, room)
        costs = np.maximum.accumulate([self._plain.of(sequences)[0], *drafted])
        found: list[float] = costs.tolist()
        return found

    def added(self, sequences: int, drafted: int) -> float:
        """Seconds that so many drafted rows add to a step of so many sequences."""
        if not drafted:
            return 0.0
        ratio = self._drafted.of(sequences + drafted)[0] - self._plain.of(sequences)[0]
        return max(0.0, ratio) * self._pace

    def worth(self, sequences: int) -> float:
        """The chance of being accepted below which one more drafted row does not pay: what it adds
        to a step, in the time that a step takes for a token."""
        versions = (self._plain.version, self._drafted.version)
        if versions != self._known_of:
            self._known_of = versions
            self._worth.clear()
        if sequences not in self._worth:
            self._worth[sequences] = self._worth_now(sequences)
        return self._worth[sequences]

    def _worth_now(self, sequences: int) -> float:
        near = 4
        few, more = self._drafted.of(sequences + 1)[0], self._drafted.of(sequences + 1 + near)[0]
        return max(0.0, more - few) / near * sequences / self._plain.of(sequences)[0]


def _bounded(said: float, expected: float) -> float:
    return min(max(said, expected / _FURTHEST), expected * _FURTHEST)
