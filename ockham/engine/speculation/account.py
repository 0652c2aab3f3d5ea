"""The balance of all drafting together, in seconds."""

from __future__ import annotations

_ALLOWED = 0.01
"""Of the time of decoding, what drafting may lose in the long run."""
_LENT, _MOST_SAVED, _MOST_OWED = 2.0, 8.0, 1.0
"""What it may lose at first, what after it has gained, and what it must make up for at most, in
plain steps."""


class Account:
    """What drafting has gained and lost, in seconds, so that it never loses much.

    A step with drafts is worth the plain steps that its tokens would have taken. Where the balance
    is spent, nothing is drafted, and a share of each step's time is paid in; so whatever the
    estimates say, no more than that share is lost in the long run."""

    def __init__(self) -> None:
        self.balance = 0.0
        self._plain_s = 0.0

    @property
    def open(self) -> bool:
        """Whether drafting may go on."""
        return self.balance >= 0.0

    def book(self, plain_s: float, gain_s: float) -> None:
        """A step gained so much, where a plain one takes `plain_s`."""
        if not self._plain_s:
            self.balance = _LENT * plain_s
        self._plain_s = plain_s
        self.balance += gain_s + _ALLOWED * plain_s
        self.balance = min(max(self.balance, -_MOST_OWED * plain_s), _MOST_SAVED * plain_s)

    def rest(self) -> None:
        """A step without any drafting."""
        self.balance += _ALLOWED * self._plain_s
