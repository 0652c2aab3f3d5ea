"""Sequential tests of a mean loss against a bound, which may be looked at after each observation.

An observation is a *unit*: up to `MOST` positions of one text, each with a loss in [0, 1] (1 where
two models disagree; a divergence, capped). Positions of one text depend on one another, so that a
unit, and not a position, is what is bet on. All that is assumed is that the expected loss of a
unit, given the units before it, is at most its positions times the bound (or at least that, for
`Recovery`); of the dependence within a unit nothing is assumed.

With n positions whose losses sum to s, and a bound b, a unit has the value
v = (s - n b) / (MOST b). It is at least -1, and its expectation is at most 0 where the mean loss is
at most b. So for each stake f in (0, 1) the factor 1 + f v has an expectation of at most 1: a bet
against the bound (Waudby-Smith & Ramdas 2024, arXiv:2010.09686). Several stakes share the capital,
so that losses of different sizes are found.

`Detector` finds a mean that rises above the bound at any time (an e-detector of the kind of
Shiryaev and Roberts: Shin, Ramdas & Rinaldo 2022, arXiv:2203.03532): before each unit one more bet
begins with a capital of 1, so that a long good past is no head start for a bad present. While the
mean loss is at most the bound, the capital after n units has an expectation of at most n, so that
an alarm among the first n units has a probability of at most n / `limit`, and the expected number
of units before a false alarm is at least `limit`.

`Recovery` asks the other way round whether the mean loss is under the bound: one bet from its
beginning, whose capital reaches `limit` with a probability of at most 1 / `limit`, ever, if it is
not (Ville's inequality). A text may be bad as a whole, so that many good texts are needed: at a
bound of 0.03 about 130 without any loss.
"""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Doubles

MOST = 16
"""Positions of a unit, at most. More of one text would say less: they depend on one another."""
STAKES: Doubles = np.array([0.2, 0.4, 0.6])
"""Of a `Detector`: shares of the largest bet that cannot lose more than there is."""
HIGH_STAKES: Doubles = np.array([0.5, 0.9])
"""Of a `Recovery`, whose units can win little each, so that it must dare more."""
LIMIT = 10_000.0
"""Of a `Detector`: units before a false alarm, on average, at least, at the bound itself."""
SURE = 20.0
"""Of a `Recovery`: it is wrong at most once in so many."""


def bet_on_loss(capitals: Doubles, loss: Doubles, positions: Doubles, bound: float) -> Doubles:
    """The capitals of a `Detector` after one more unit. They are (..., stakes), and 0 at first;
    `loss`, the sum over a unit, and its `positions` are (...), for many tests at once."""
    value = (loss - positions * bound) / (MOST * bound)
    found: Doubles = (capitals + 1.0 / len(STAKES)) * (1.0 + STAKES * value[..., None])
    return np.minimum(found, LIMIT)


def bet_on_recovery(capitals: Doubles, loss: Doubles, positions: Doubles, bound: float) -> Doubles:
    """The same of a `Recovery`, whose capitals sum to 1 at first."""
    value = (positions * bound - loss) / (MOST * (1.0 - bound))
    return np.minimum(capitals * (1.0 + HIGH_STAKES * value[..., None]), LIMIT)


class Detector:
    """Whether a mean loss has risen above a bound in (0, 1)."""

    limit = LIMIT

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._capitals: Doubles = np.zeros(len(STAKES))
        self.alarmed = False
        """Whether it has; that stays."""

    @property
    def capital(self) -> float:
        """What the bets have made. At `limit` it is an alarm."""
        return float(self._capitals.sum())

    def add(self, loss: float, positions: int) -> bool:
        """Take in a unit: the sum of its losses. Whether that is an alarm."""
        unit = np.array(loss), np.array(float(positions))
        self._capitals = bet_on_loss(self._capitals, *unit, self._bound)
        self.alarmed = self.alarmed or self.capital >= self.limit
        return self.alarmed


class Recovery:
    """Whether a mean loss is under a bound in (0, 1)."""

    limit = SURE

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._capitals: Doubles = np.full(len(HIGH_STAKES), 1.0 / len(HIGH_STAKES))
        self.sure = False
        """Whether it is; that stays."""

    @property
    def capital(self) -> float:
        """What the bets have made. At `limit` the mean is under the bound."""
        return float(self._capitals.sum())

    def add(self, loss: float, positions: int) -> bool:
        """Take in a unit: the sum of its losses. Whether the mean is under the bound by now."""
        unit = np.array(loss), np.array(float(positions))
        self._capitals = bet_on_recovery(self._capitals, *unit, self._bound)
        self.sure = self.sure or self.capital >= self.limit
        return self.sure
