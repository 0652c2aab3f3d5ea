"""The way of requests into an engine that steps meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.ledger import Ledger
from ockham.core.logs import of_request
from ockham.engine.idling import Idle
from ockham.engine.messages import (
    Abort,
    AdapterQuery,
    AdapterReport,
    CacheQuery,
    Delta,
    EndThought,
    FromEngine,
    GuardQuery,
    GuardReport,
    Query,
    Refused,
    Request,
    ThoughtEnded,
)
from ockham.engine.preparing import NOTHING_PREPARED, Preparation

log = logging.getLogger("ockham.engine")


class Held(set[str]):
    """The requests that the engine has taken and not finished."""

    def update_from(self, deltas: Iterable[Delta]) -> None:
        self.difference_update(delta.request_id for delta in deltas if delta.finished)


class Intake:
    """Hands requests to an engine. Those that need a grammar which is still being compiled, or an
    adapter that is not in memory yet, wait here, and no step waits for them."""

    def __init__(self, idle: Idle, held: Held) -> None:
        self._engine, self._idle = idle.engine, idle
        self._held = held
        self._waiting: dict[str, tuple[Request, Preparation]] = {}

    @property
    def waiting(self) -> bool:
        """Whether `ready` may soon have something to do."""
        return bool(self._waiting)

    def take(self, message: Request | Abort | Query) -> list[FromEngine]:
        """Hand one message to the engine; what it answers at once."""
        if isinstance(message, CacheQuery):
            try:
                return [self._engine.cache.answer(message)]
            except Exception as error:
                return [_refusal(message.ask_id, error)]
        if isinstance(message, AdapterQuery):
            try:
                self._engine.limits.check_asks(message.asks)
            except Exception as error:
                return [_refusal(message.ask_id, error)]
            return [AdapterReport(ask_id=message.ask_id)]
        if isinstance(message, EndThought):
            try:
                self._engine.end_thought(message.request_id)
                self._idle.forget(message.request_id)
            except Exception as error:
                return [_refusal(message.ask_id, error)]
            return [ThoughtEnded(ask_id=message.ask_id)]
        if isinstance(message, GuardQuery):
            guard = self._idle.guard
            found = None if guard is None else guard.stats()
            return [GuardReport(ask_id=message.ask_id, guard=found)]
        if isinstance(message, Abort):
            return [*self._idle.after(self._abort(message.request_id))]
        try:
            if message.request_id in self._waiting:
                raise InvalidRequest(f"a request {message.request_id!r} is already waiting.")
            message = self._idle.admit(message)
            preparation = self._engine.prepare(message)
        except Exception as error:
            return [self._refuse(message.request_id, error)]
        if preparation is not None and not preparation.done():
            self._waiting[message.request_id] = (message, preparation)
            self._held.add(message.request_id)
            return []
        return self._add(message, preparation)

    def ready(self) -> list[FromEngine]:
        """Hand over what need not wait any longer; what the engine answers."""
        done = [name for name, (_, coming) in self._waiting.items() if coming.done()]
        answers: list[FromEngine] = []
        for name in done:
            self._held.discard(name)
            answers += self._add(*self._waiting.pop(name))
        return answers

    def _add(self, request: Request, preparation: Preparation | None) -> list[FromEngine]:
        """`preparation` is done."""
        try:
            prepared = NOTHING_PREPARED if preparation is None else preparation.result()
            self._engine.add(request, prepared)
        except Exception as error:
            if request.request_id not in self._engine.groups:
                self._engine.release(request.request_id)
            return [self._refuse(request.request_id, error)]
        self._held.add(request.request_id)
        return []

    def _refuse(self, request_id: str, error: Exception) -> Refused:
        """A request will not be served. One of its id may be."""
        if request_id not in self._held:
            self._idle.forget(request_id)
        return _refusal(request_id, error)

    def _abort(self, request_id: str) -> list[Delta]:
        self._held.discard(request_id)
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return self._engine.abort(request_id)
        self._engine.release(request_id)
        choices = range(waiting[0].params.n)
        deltas = [Delta(request_id, index, finish_reason="abort") for index in choices]
        deltas[-1].finished, deltas[-1].ledger = True, Ledger()
        return deltas


def _refusal(request_id: str, error: Exception) -> Refused:
    """A fault met by one request is that request's alone: the others go on."""
    if isinstance(error, InvalidRequest):
        return Refused(request_id, str(error), error.status, error.param, error.code)
    if isinstance(error, OckhamError):
        return Refused(request_id, str(error), error.status)
    log.error(
        "The engine could not take a request.",
        exc_info=error,
        extra=of_request(request_id),
    )
    reason = f"The engine could not take the request: {describe(error)}."
    return Refused(request_id, reason, 500)


def describe(error: Exception) -> str:
    """An error that nobody raised on purpose, in words."""
    return f"{type(error).__name__}: {error}".rstrip(".: ")
