"""Answers of branches, of which some are still to come: a program has to be run first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown
from ockham.core.seams import Problem, Programs
from ockham.search.structures.answers import BEHAVIOUR, MOST_ANSWER, Reader
from ockham.search.structures.behaviour import Outputs, Trials

MOST_CALLS = 64
MOST_CALL = 1000
"""Characters of a call."""


def check_calls(calls: Sequence[str]) -> str | None:
    """Why calls cannot be evaluated; None if they can."""
    if len(calls) > MOST_CALLS:
        return f"there may be at most {MOST_CALLS} calls, got {len(calls)}."
    for call in calls:
        if not 1 <= len(call) <= MOST_CALL:
            return f"a call must have 1 to {MOST_CALL} characters, got {shown(call)}."
    return None


def check_programs(extract: str, calls: Sequence[str], problem: Problem, asked_as: str) -> None:
    """Raise InvalidRequest unless what a request asks of programs can be had."""
    if calls and extract != BEHAVIOUR:
        raise InvalidRequest(
            f'{asked_as}: calls are evaluated where extract is "{BEHAVIOUR}", got '
            f"{shown(extract)}.",
            asked_as,
        )
    if extract == BEHAVIOUR and problem.programs is None:
        raise InvalidRequest(
            f"{asked_as}: the engine runs no programs; start it with --run-programs, or choose "
            "another extract.",
            asked_as,
        )


class Readings:
    """What the texts of branches say. `known` has the answers that are there, by number: None of a
    text that has none."""

    def __init__(self, extract: str, calls: Sequence[str], programs: Programs | None) -> None:
        self.known: dict[int, str | None] = {}
        self.outputs: dict[int, Outputs] = {}
        """What the programs of texts gave, where answers are behaviours."""
        self.failures: dict[int, str] = {}
        """Why a program gave nothing."""
        self._coming: dict[int, Future[Outputs]] = {}
        self._read: Reader | None = None
        self._trials: Trials | None = None
        if extract == BEHAVIOUR:
            assert programs is not None, "as `check_programs` found"
            self._trials = Trials(programs, calls)
        else:
            self._read = Reader(extract)

    @property
    def waits(self) -> list[Future[Outputs]]:
        """Those that are still to come."""
        return list(self._coming.values())

    def add(self, number: int, text: str) -> None:
        """Read a text."""
        if self._trials is None:
            self.known[number] = self.read(text)
        else:
            self._coming[number] = self._trials.submit(text)

    def read(self, text: str) -> str | None:
        """What a text says, if that can be told at once."""
        return None if self._read is None else self._read(text)

    def none(self, number: int) -> None:
        """A branch has no answer."""
        self.known[number] = None

    def settle(self) -> None:
        """Take in what has come."""
        for number, future in list(self._coming.items()):
            if not future.done():
                continue
            del self._coming[number]
            error = future.exception()
            if error is None:
                self.outputs[number] = future.result()
                self.known[number] = answer_of(self.outputs[number])
            else:
                self.known[number], self.failures[number] = None, str(error)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._trials is not None:
            self._trials.cancel()
        self._coming.clear()

    def told(self, counted: Sequence[int]) -> dict[str, Any]:
        """What a report says of the programs of these branches; nothing where none are run."""
        if self._trials is None:
            return {}
        told: dict[str, Any] = {"runs": self._trials.runs, "runs_spared": self._trials.runs_spared}
        why = {str(n): self.failures[n] for n in sorted(counted) if n in self.failures}
        return {**told, "without_outputs": why} if why else told


def answer_of(outputs: Outputs) -> str:
    """Outputs as one answer: the same for the same, different for different ones."""
    text = json.dumps(outputs, ensure_ascii=False)
    if len(text) <= MOST_ANSWER:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return f"{text[: MOST_ANSWER - 80]}... {digest}"
