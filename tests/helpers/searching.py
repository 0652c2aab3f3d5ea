"""Searches of tests, which are no techniques of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ockham.core.asks import Ask
from ockham.core.seams import Action, Branch, Drop, Finish, Fork, Problem, SearchState
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.techniques import Chosen

State = Callable[[Problem], SearchState]
NAME = "tested"


class _Begin:
    def __init__(self, state: State) -> None:
        self._state = state

    def begin(self, ask: Ask, problem: Problem) -> SearchState:
        return self._state(problem)


def let_search(engine: Engine, states: Mapping[str, State]) -> None:
    """From now on, a request of a name that `states` has is answered by that search."""
    known = getattr(engine, "tested_searches", None)
    if known is not None:
        known.clear()
        known.update(states)
        return
    known, plain = dict(states), engine.techniques.of
    engine.tested_searches = known  # type: ignore[attr-defined]

    def of(request: Request, seam: str) -> Chosen | None:
        state = known.get(request.request_id)
        if seam != "search" or state is None:
            return plain(request, seam)
        return Chosen(NAME, _Begin(state), Ask(), False, "", True)

    engine.techniques.of = of  # type: ignore[method-assign]


class Relay(SearchState):
    """Branches that go on from what another has said after so many tokens, while that runs or when
    it has ended. One of them is given up. What they say depends on no step."""

    watches: ClassVar[bool] = True

    def __init__(self, problem: Problem, places: Sequence[int]) -> None:
        """Branch i + 1 goes on from branch i after `places[i]` tokens."""
        self._places = places

    @property
    def width(self) -> int:
        return len(self._places) + 2

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        last = len(self._places)
        actions: list[Action | Finish] = []
        for number, place in enumerate(self._places, 1):
            old = branches.get(number - 1)
            if number in branches or old is None or len(old.tokens) < place:
                continue
            if old.finish_reason is not None and len(old.tokens) == place:
                continue  # it has nothing to go on with
            actions.append(Fork(number - 1, number, place))
            if number == last:
                actions += [Fork(number - 1, last + 1, place), Drop(last + 1)]
            return actions
        if all(branch.finish_reason is not None for branch in branches.values()):
            return [Finish([*branches])]
        return []
