"""Scorers: how good what a branch has said is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from ockham.core.arrays import Ints
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.probe import Probe
from ockham.core.seams import NOTHING, Branch, Judge, Observer, OwnRows, Problem, Seen, Wants

LIKELIHOOD, CONFIDENCE, CHECKER, PROBE = "likelihood", "confidence", "checker", "probe"
REWARD = "reward"
_NAMED_BY = {
    CHECKER: "--checkers NAME=PROGRAM",
    REWARD: "--rewards NAME=MODEL",
    PROBE: "--probes NAME=DIRECTORY",
}
"""Scorers that an engine knows by name, and how it learns of them."""


class Scorer(Protocol):
    """Scores what branches have said."""

    def score(self, branch: Branch, start: int, stop: int, text: str) -> Future[float]:
        """The score of a branch's tokens [start, stop), which make it say `text` by then: in
        [0, 1], the higher the better. A score that is known at once is a future that is done."""
        ...

    def observer(self, number: int) -> Observer | None:
        """What it must see of a branch that begins; None for nothing."""
        return None


def check_scorer(scorer: str) -> str | None:
    """Why a scorer cannot be; None if it can."""
    kind, _, name = scorer.partition(":")
    if scorer in (LIKELIHOOD, CONFIDENCE) or (kind in _NAMED_BY and name):
        return None
    return (
        f"scorer must be {LIKELIHOOD}, {CONFIDENCE}, {CHECKER}:NAME, {REWARD}:NAME or "
        f"{PROBE}:NAME, got {shown(scorer)}."
    )


def scorer_of(name: str, problem: Problem, asked_as: str) -> Scorer:
    """The scorer of a request. Raises InvalidRequest if the engine has none of the name."""
    if name == LIKELIHOOD:
        return Likelihood()
    if name == CONFIDENCE:
        return Confidence()
    kind, _, which = name.partition(":")
    judges = {CHECKER: problem.judges, REWARD: problem.rewards}
    there: Mapping[str, Judge | Probe] = judges.get(kind, problem.probes)
    if which not in there:
        known = ", ".join(there) or f"none; name one by {_NAMED_BY[kind]}"
        raise InvalidRequest(
            f"{asked_as}: there is no {kind} {shown(which)}; there is: {known}.", asked_as
        )
    if kind == PROBE:
        return Probed(problem.probes[which])
    return Checked(judges[kind][which], problem.prompt)


def known(score: float) -> Future[float]:
    """A score that is there already."""
    found: Future[float] = Future()
    found.set_result(score)
    return found


class Likelihood(Scorer):
    """The geometric mean of the probabilities of the tokens."""

    def score(self, branch: Branch, start: int, stop: int, text: str) -> Future[float]:
        """See `Scorer`."""
        logprobs = branch.scores.logprobs[start:stop]
        return known(math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0)


class Confidence(Scorer):
    """The mean confidence of the tokens, c, as 1 - e^(-c / 10): a confidence is hardly ever above
    30."""

    def score(self, branch: Branch, start: int, stop: int, text: str) -> Future[float]:
        """See `Scorer`."""
        values = [c for c in branch.scores.confidences[start:stop] if not math.isnan(c)]
        return known(1.0 - math.exp(-sum(values) / len(values) / 10.0) if values else 0.0)


class Checked(Scorer):
    """What a program or a reward model says of the text."""

    def __init__(self, judge: Judge, prompt: Ints) -> None:
        self._judge, self._prompt = judge, prompt

    def score(self, branch: Branch, start: int, stop: int, text: str) -> Future[float]:
        """See `Scorer`."""
        return self._judge.submit(self._prompt, text)


class Probed(Scorer):
    """What a probe says of the hidden state by which the latest token was chosen that is not the
    last of a text that has ended. Before there is one it is 0."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._latest: dict[int, float] = {}

    def score(self, branch: Branch, start: int, stop: int, text: str) -> Future[float]:
        """See `Scorer`."""
        return known(self._latest.get(branch.number, 0.0))

    def observer(self, number: int) -> Observer:
        """See `Scorer`."""
        return _Reading(self._probe, number, self._latest)


class _Reading(Observer):
    """Reads the states of one branch."""

    def __init__(self, probe: Probe, number: int, latest: dict[int, float]) -> None:
        self._probe, self._number, self._latest = probe, number, latest
        self._wants = Wants(hidden=(probe.facts.layer,), newest=True)

    def wants(self, own: OwnRows) -> Wants:
        return self._wants if own.choosing else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        states = seen.hidden[self._probe.facts.layer]
        self._latest[self._number] = float(self._probe(states)[-1])


class Scores:
    """The scores of branches or nodes, of which some are still to come. One that failed is 0.0."""

    def __init__(self) -> None:
        self.known: dict[int, float] = {}
        self.failures: dict[int, str] = {}
        """Why there is no score."""
        self._coming: dict[int, Future[float]] = {}

    @property
    def waits(self) -> list[Future[float]]:
        """Those that are still to come."""
        return list(self._coming.values())

    def add(self, number: int, score: Future[float]) -> None:
        """The score of a branch or node is on its way."""
        self._coming[number] = score
        self.settle()

    def fail(self, number: int, reason: str) -> None:
        """There is no score."""
        self.known[number], self.failures[number] = 0.0, reason

    def settle(self) -> None:
        """Take in what has come."""
        for number, future in list(self._coming.items()):
            if future.done():
                del self._coming[number]
                error = future.exception()
                if error is None:
                    self.known[number] = future.result()
                else:
                    self.fail(number, str(error))

    def cancel(self) -> None:
        """Nobody waits any more."""
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()

    def of(self, numbers: Mapping[int, object] | list[int]) -> dict[int, float]:
        """The scores of these that are known."""
        return {number: self.known[number] for number in numbers if number in self.known}
