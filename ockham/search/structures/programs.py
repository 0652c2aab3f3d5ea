"""Programs over branches: generators that say which forks write next, and are told what they said.

A program yields calls, and is resumed with what each of them said when all are over. In place of a
call it may yield another program, whose value stands for what it said: its calls run beside the
others. What a program does follows from what its calls said, and the number of a branch from its
place in the program: neither depends on what runs beside it, nor on which call was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ockham.core.errors import OckhamError
from ockham.core.seams import (
    Action,
    Branch,
    Continue,
    Drop,
    End,
    Finish,
    Fork,
    Hold,
    Observer,
    Problem,
    SearchState,
    Write,
)
from ockham.search.structures.calls import Call, Said, Steps

FIRST = 0
"""The branch with which a search begins."""
MOST_CALLS = 256
"""One more than the calls and programs that one program may yield."""
MOST_LEVELS = 4
"""Of programs within programs: numbers of branches have 32 bits."""
NEAR = 16
"""Tokens of state beyond its own place for which a call goes on from another branch, or waits for
one: less is sooner computed anew."""


@dataclass(slots=True, eq=False)
class _Task:
    """A program that runs. `base` is what the numbers of its branches begin with."""

    steps: Steps
    base: int
    parent: tuple[_Task, int] | None
    """Whom its value is told, and as which result."""
    given: int = 0
    results: list[Any] = field(default_factory=list)
    left: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    """A call with its branch. `own` is the first character that it said, once that is known."""

    call: Call
    number: int
    task: _Task
    slot: int
    whole: list[int] | None = None
    """All tokens that its branch begins with, once they are known."""
    written: int = 0
    start: int = 0
    own: int | None = None


class Program(SearchState):
    """The program that answers one request. A subclass says what it does (`steps`), and makes the
    answer of its value (`answer`)."""

    watches: ClassVar[bool] = True

    def __init__(self, problem: Problem, parallel: int, levels: int = 1) -> None:
        """At most `parallel` calls run at once, and `levels` branches are held beside them."""
        self._encode, self._stops = problem.encode, problem.stops
        self._prompt = len(problem.prompt)
        self._parallel, self._levels = parallel, levels
        self._root: _Task | None = None
        self._value: Any = None
        self._over = False
        self._running: dict[int, _Running] = {}
        self._waiting: deque[_Running] = deque()
        self._going_on: deque[_Running] = deque()
        """Calls that wait for a seat. Those that go on from others begin first, as long as the
        state of these is there."""
        self._held: set[int] = set()
        self._outside: list[tuple[Future[Any], _Task, int]] = []
        self._ended: set[int] = set()
        """Branches that this ended."""
        self._observers: dict[int, Observer] = {}
        self.begun = 0
        """Branches that calls began."""
        self.drawn = self.written = self.shared = 0
        """Tokens of calls that are over: drawn, given to them, and those that their branches began
        with."""

    # -- what a subclass says ------------------------------------------------------------------

    def steps(self) -> Steps:
        """The program."""
        raise NotImplementedError

    def answer(self, value: Any) -> Finish:
        """The answer, when the program is over."""
        raise NotImplementedError

    def told(self) -> dict[str, Any]:
        """What each report says of the tokens."""
        return {
            "branches": self.begun,
            "tokens_made": self.drawn,
            "tokens_written": self.written,
            "tokens_shared": self.shared,
        }

    # -- as a `SearchState` --------------------------------------------------------------------

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return self._parallel + self._levels

    @property
    def waits(self) -> Sequence[Future[Any]]:
        """See `SearchState`."""
        return [future for future, _, _ in self._outside]

    def close(self) -> None:
        """See `SearchState`."""
        for future, _, _ in self._outside:
            future.cancel()

    def observer(self, branch: int) -> Observer | None:
        """See `SearchState`."""
        return self._observers.pop(branch, None)

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        actions: list[Action | Finish] = []
        if self._root is None:
            self._root = _Task(self.steps(), 0, None)
            self._resume(self._root, None)
            if FIRST not in self._running:
                self._held.add(FIRST)  # of which the calls fork off
                if branches[FIRST].finish_reason is None:
                    actions.append(Hold(FIRST))
        fresh = {
            n for n, b in branches.items() if b.finish_reason is None or n in self._running
        }  # those whose state is there
        for running in list(self._running.values()):
            said = self._look(running, branches[running.number])
            if said is None:
                continue
            del self._running[running.number]
            if branches[running.number].finish_reason is None:
                actions.append(self._rest(running))
            self.drawn += said.drawn
            self.written += said.written
            self._tell(running.task, running.slot, said)
        self._settle()
        if self._over:
            return [*actions, *self._finish(branches)]
        for queue in (self._going_on, self._waiting):
            for running in list(queue):
                if len(self._running) >= self._parallel:
                    return actions
                begun = self._begin(running, branches, fresh)
                if begun:
                    queue.remove(running)
                    actions += begun
        return actions

    # -- inside --------------------------------------------------------------------------------

    def _resume(self, task: _Task, results: list[Any] | None) -> None:
        """Go on with a program until it waits for calls, or has a value."""
        while True:
            try:
                wanted = next(task.steps) if results is None else task.steps.send(results)
            except StopIteration as stop:
                if task.parent is None:
                    self._value, self._over = stop.value, True
                else:
                    self._tell(*task.parent, stop.value)
                return
            results = task.results = [None] * len(wanted)
            task.left = len(wanted)
            if wanted:
                break
        for slot, each in enumerate(wanted):
            self._want(task, slot, each)

    def _settle(self) -> None:
        """Take in what has happened outside of the engine."""
        while done := [each for each in self._outside if each[0].done()]:
            self._outside = [each for each in self._outside if each not in done]
            for future, task, slot in done:
                failed = future.cancelled() or future.exception() is not None
                self._tell(task, slot, None if failed else future.result())

    def _want(self, task: _Task, slot: int, each: Call | Steps | Future[Any]) -> None:
        if isinstance(each, Future):
            self._outside.append((each, task, slot))
            return
        if isinstance(each, Call) and each.first:
            self._running[FIRST] = _Running(each, FIRST, task, slot, own=0)
            return
        task.given += 1
        if task.given >= MOST_CALLS:
            raise OckhamError(f"a program has more than {MOST_CALLS - 1} calls")
        number = task.base * MOST_CALLS + task.given
        if isinstance(each, Call):
            waiting = self._waiting if each.after is None else self._going_on
            waiting.append(_Running(each, number, task, slot))
        else:
            self._resume(_Task(each, number, (task, slot)), None)

    def _tell(self, task: _Task, slot: int, result: Any) -> None:
        """A call or program that another one waits for is over."""
        task.results[slot] = result
        task.left -= 1
        if not task.left:
            self._resume(task, task.results)

    def _begin(
        self, running: _Running, branches: Mapping[int, Branch], fresh: set[int]
    ) -> list[Action | Finish]:
        """Begin with a call, unless it is worth waiting for one whose text begins alike. `fresh`
        are the branches whose state is there."""
        call, number = running.call, running.number
        said = call.after
        if said is None:  # all branches have the prompt's state, as long as they have any
            place, text, source = 0, call.text, min(fresh.intersection(branches), default=FIRST)
        else:
            place, text, source = said.place, said.rest + call.text, said.branch
        origin = source
        if running.whole is None:
            written = list(self._encode(text)) if text else []
            running.whole = [*branches[origin].tokens[:place], *written]
            running.written, running.start = len(written), place + len(written)
        shared, near, coming = self._nearest(running.whole, branches, fresh)
        if coming - max(shared, place) >= NEAR:
            return []
        at = place
        if shared - place >= NEAR:
            source, at = near, shared
        branch = branches[source]
        ended = branch.finish_reason is not None or source in self._ended
        if ended and at and at == branch.length:
            at -= 1  # the state after the last token of a text that has ended is not there
        written = running.whole[at:]
        if call.observer is not None:
            self._observers[number] = call.observer
        self._running[number] = running
        self.begun += 1
        self.shared += self._prompt + place
        # What goes on from a branch that is held is held, too.
        actions: list[Action | Finish] = [Fork(source, number, at), Continue(number)]
        if written:
            actions.append(Write(number, written, ends=False))
        if call.last and origin in self._held:
            self._held.discard(origin)
            fresh.discard(origin)
            actions.append(Drop(origin))
        return actions

    def _nearest(
        self, whole: list[int], branches: Mapping[int, Branch], fresh: set[int]
    ) -> tuple[int, int, int]:
        """Of the branches whose state is there, how many tokens of `whole` the one begins with that
        has most of them, and which one that is; and how many a branch will have soon whose own
        beginning is still to be computed."""
        shared, near, coming = 0, FIRST, 0
        for number in sorted(fresh.union(self._running)):
            running, branch = self._running.get(number), branches.get(number)
            if running is not None and (branch is None or branch.length <= running.start):
                coming = max(coming, _alike(running.whole or [], whole))
            elif branch is not None and (found := _alike(branch.tokens, whole)) > shared:
                shared, near = found, number
        return shared, near, coming

    def _rest(self, running: _Running) -> Action:
        """What becomes of a branch whose call is over, and which goes on by itself."""
        number = running.number
        if number == FIRST or (running.call.keep and len(self._held) < self._levels):
            self._held.add(number)
            return Hold(number)
        self._ended.add(number)
        return End(number)

    def _look(self, running: _Running, branch: Branch) -> Said | None:
        """What a call has said, if it is over. A step may have brought more than that."""
        call, length, reason = running.call, branch.length, branch.finish_reason
        if length <= running.start and reason is None:
            return None
        start = min(running.start, length)
        if running.own is None:
            running.own = branch.characters(start) if start else 0
        text, own, most = branch.text, running.own, start + call.tokens
        found = [(at, marker) for marker in call.until if (at := text.find(marker, own)) >= 0]
        at, marker = min(found, default=(len(text), ""), key=lambda each: (each[0], -len(each[1])))
        place, rest = length, ""
        if marker:
            end = at + len(marker)
            place = max(start, branch.place(end - 1)) + 1
            if branch.characters(place) > end:
                place -= 1
                rest = text[branch.characters(place) if place > start else own : end]
        if place + bool(rest) > most or (place == most and not marker and reason is None):
            place, marker, rest = most, "", ""
            at = max(own, branch.characters(most))
        elif not marker and reason is None:
            return None
        ended = reason if not marker and place == length else None
        if ended is not None and place > start and branch.tokens[-1] in self._stops:
            place -= 1  # who goes on from here goes on before the end
        drawn = (length if ended is not None else place + bool(rest)) - start
        whole = slice(start, start + drawn)
        return Said(
            branch.number,
            start,
            place,
            text[own:at],
            marker,
            rest,
            drawn,
            running.written,
            ended,
            branch.tokens[whole],
            branch.scores.logprobs[whole],
        )

    def _finish(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """The program is over: its answer, and the branches that are held are given up."""
        finish = self.answer(self._value)
        return [*(Drop(n) for n in sorted(self._held) if n not in finish.choices), finish]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
