"""How often drafted tokens are accepted: those of a drafter's kinds, and those of one sequence."""

from __future__ import annotations

_OWN_WEIGHT = 6.0
"""Weight of the engine-wide acceptance rate, in trials, as a prior for each sequence."""
_PRIOR_WEIGHT = 3.0
_MEMORY = 200.0
"""Trials of a kind after which older ones begin to be forgotten."""
_FIRST_PROBE, _LAST_PROBE = 64, 4096
"""Steps without a trial after which a kind that is not worth it is tried again; doubled with each
trial that shows the same."""


class Acceptance:
    """How often the tokens of each kind of one drafter are accepted, when their parents are."""

    def __init__(self, prior: tuple[float, ...]) -> None:
        self.changed = True
        """Since the controller looked last."""
        self._soonest = _FIRST_PROBE
        self._hits = [_PRIOR_WEIGHT * share for share in prior]
        self._trials = [_PRIOR_WEIGHT] * len(prior)
        self._next_probe = [_FIRST_PROBE] * len(prior)
        self._interval = [_FIRST_PROBE] * len(prior)
        self.shares = list(prior)

    def learn(self, kind: int, accepted: bool) -> None:
        if self._trials[kind] >= _MEMORY:
            self._hits[kind] *= 0.5
            self._trials[kind] *= 0.5
        self._hits[kind] += accepted
        self._trials[kind] += 1.0
        self.shares[kind] = self._hits[kind] / self._trials[kind]
        self.changed = True

    def tried(self, kind: int, step: int, accepted: bool) -> None:
        """When to try it again, should it not be worth it."""
        grown = _FIRST_PROBE if accepted else min(2 * self._interval[kind], _LAST_PROBE)
        self._interval[kind] = grown
        self._next_probe[kind] = step + grown
        self._soonest = min(self._next_probe, default=step)

    def due(self, step: int) -> list[int]:
        """Kinds that nothing is known of lately."""
        if step < self._soonest:
            return []
        return [kind for kind, at in enumerate(self._next_probe) if step >= at]


class OwnAcceptance:
    """What one sequence has shown of one drafter, beside what all of them have."""

    __slots__ = ("_all", "_hits", "_shares", "_trials", "_tried")

    def __init__(self, kinds: int) -> None:
        self._hits, self._trials = [0.0] * kinds, [0.0] * kinds
        self._tried = False
        self._all: list[float] | None = None
        """The shares of all sequences that `_shares` were made of; None where more has been learned
        since."""
        self._shares: list[float] = []

    def learn(self, kind: int, accepted: bool) -> None:
        self._hits[kind] += accepted
        self._trials[kind] += 1.0
        self._tried, self._all = True, None

    def shares(self, shares: list[float]) -> list[float]:
        """The `shares` of all sequences, drawn towards what this one has shown."""
        if not self._tried:
            return shares
        if self._all is not shares:
            self._all = shares
            self._shares = [
                (h + _OWN_WEIGHT * share) / (t + _OWN_WEIGHT) if t else share
                for h, t, share in zip(self._hits, self._trials, shares, strict=True)
            ]
        return self._shares
