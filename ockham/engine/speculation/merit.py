"""Whether a drafter that takes time of its own brings more than it takes."""

from __future__ import annotations

_FIRST_TRIAL, _TRIAL = 24, 8
"""Proposals after which it is judged for the first time, and later."""
_FIRST_REST, _LAST_REST = 128, 8192
"""Steps that it is left alone after a trial that did not pay; doubled with each that shows the
same."""
_HELD_UP = 4.0
"""A proposal that took more than so many times what is usual was held up by something else."""
_BELIEVED = 0.1
"""How much of what a proposal took changes what is usual."""


class Merit:
    """The gains and costs of one drafter, in seconds, beside those of all others.

    The account of all drafting together would stay open though one of them loses what another
    gains. What a drafter gains is what it alone proposed: tokens that others proposed too would
    have been drafted without it."""

    def __init__(self) -> None:
        self._net = 0.0
        self._usual_s = 0.0
        self._proposals = 0
        self._trial = _FIRST_TRIAL
        self._rest = _FIRST_REST
        self._until = 0
        """The step before which it is left alone."""

    def rests(self, step: int) -> bool:
        """Whether it is not to be asked now."""
        return step < self._until

    def book(self, step: int, gain_s: float, cost_s: float) -> None:
        """A proposal of it gained and took so much."""
        usual_s = self._usual_s or cost_s
        cost_s = min(cost_s, _HELD_UP * usual_s)
        self._usual_s = usual_s + _BELIEVED * (cost_s - usual_s)
        self._net += gain_s - cost_s
        self._proposals += 1
        if self._proposals < self._trial:
            return
        if self._net < 0.0:
            self._until = step + self._rest
            self._rest = min(2 * self._rest, _LAST_REST)
        else:
            self._rest = _FIRST_REST
        self._net, self._proposals, self._trial = 0.0, 0, _TRIAL
