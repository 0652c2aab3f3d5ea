"""The way of requests into an engine that steps meanwhile."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from concurrent.futures import Future

from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.engine.engine import Engine
from ockham.engine.messages import Abort, CacheQuery, Delta, FromEngine, Refused, Request
from ockham.engine.structured.grammar import Grammar


class Held(set[str]):
    """The requests that the engine has taken and not finished."""

    def update_from(self, deltas: Iterable[Delta]) -> None:
        self.difference_update(delta.request_id for delta in deltas if delta.finished)


class Intake:
    """Hands requests to an engine. Those that need a grammar which is still being compiled wait
    here, and no step waits for them."""

    def __init__(self, engine: Engine, held: Held) -> None:
        self._engine = engine
        self._held = held
        self._waiting: dict[str, tuple[Request, Future[Grammar]]] = {}

    @property
    def waiting(self) -> bool:
        """Whether `ready` may soon have something to do."""
        return bool(self._waiting)

    def take(self, message: Request | Abort | CacheQuery) -> list[FromEngine]:
        """Hand one message to the engine; what it answers at once."""
        if isinstance(message, CacheQuery):
            return [self._engine.cache.answer(message)]
        if isinstance(message, Abort):
            return [*self._abort(message.request_id)]
        try:
            compiling = self._engine.prepare(message)
        except Exception as error:
            return [_refusal(message.request_id, error)]
        if compiling is not None and not compiling.done():
            self._waiting[message.request_id] = (message, compiling)
            self._held.add(message.request_id)
            return []
        return self._add(message, compiling)

    def ready(self) -> list[FromEngine]:
        """Hand over what need not wait any longer; what the engine answers."""
        done = [name for name, (_, compiling) in self._waiting.items() if compiling.done()]
        answers: list[FromEngine] = []
        for name in done:
            self._held.discard(name)
            answers += self._add(*self._waiting.pop(name))
        return answers

    def _add(self, request: Request, compiled: Future[Grammar] | None) -> list[FromEngine]:
        """`compiled` is done."""
        try:
            self._engine.add(request, None if compiled is None else compiled.result())
        except Exception as error:
            return [_refusal(request.request_id, error)]
        self._held.add(request.request_id)
        return []

    def _abort(self, request_id: str) -> list[Delta]:
        self._held.discard(request_id)
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return self._engine.abort(request_id)
        choices = range(waiting[0].params.n)
        deltas = [Delta(request_id, index, finish_reason="abort") for index in choices]
        deltas[-1].finished, deltas[-1].ledger = True, Ledger()
        return deltas


def _refusal(request_id: str, error: Exception) -> Refused:
    """A fault met by one request is that request's alone: the others go on."""
    if isinstance(error, InvalidRequest):
        return Refused(request_id, str(error), error.status, error.param)
    if isinstance(error, OckhamError):
        return Refused(request_id, str(error), error.status)
    traceback.print_exception(error)
    reason = f"The engine could not take the request: {describe(error)}."
    return Refused(request_id, reason, 500)


def describe(error: Exception) -> str:
    """An error that nobody raised on purpose, in words."""
    return f"{type(error).__name__}: {error}".rstrip(".: ")
