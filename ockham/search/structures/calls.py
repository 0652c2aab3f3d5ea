"""Calls: what a program over branches asks for, and what it is told."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from ockham.core.seams import Observer

NO_BOUND = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A branch goes on from `after`, or else from the prompt, with `text`. It writes until one of
    the texts `until` comes, it has drawn `tokens` tokens, or it ends by itself.

    `first` takes the branch that there is already, which began at the prompt. `keep` holds the
    branch then, for calls that go on from it; the one with `last` takes its place. `observer` sees
    the rows of the branch.
    """

    text: str = ""
    after: Said | None = None
    until: tuple[str, ...] = ()
    tokens: int = NO_BOUND
    first: bool = False
    keep: bool = False
    last: bool = False
    observer: Observer | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a call said: `text`, up to the text `until` that came, which is `marker`; "" if none
    did. The first `place` tokens of the branch say that all, but for `rest`, which ends the marker
    within a token.

    `drawn` and `written` are tokens that it drew, and that it was given. `start` is the first that
    it drew. `reason` is why the branch ended, if it did. `tokens` are those that it drew, and
    `logprobs` their log probabilities, where the search `scores`.
    """

    branch: int
    start: int
    place: int
    text: str
    marker: str
    rest: str
    drawn: int
    written: int
    reason: str | None
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()


Steps: TypeAlias = Generator[Sequence["Call | Steps | Future[Any]"], list[Any], Any]
"""A program: yields calls, programs and futures of what happens outside of the engine, gets their
results (None of a future that failed), and has a value itself."""
