"""What an engine does while nobody asks for anything, and gives up at once when somebody does."""

from __future__ import annotations

from ockham.engine.engine import Engine
from ockham.engine.guarding import Guard, guard_of
from ockham.engine.messages import Delta, Request, Stats
from ockham.engine.sleeping import Sleeper, sleeper_of


class Idle:
    """The idle work of an engine: pins are computed anew first, then texts are scored for the
    quality guard, which sees all requests, too."""

    def __init__(self, sleeper: Sleeper, guard: Guard | None = None) -> None:
        self.engine, self.sleeper, self.guard = sleeper.engine, sleeper, guard

    @property
    def running(self) -> bool:
        """Whether such work is in the engine."""
        return self.sleeper.running or (self.guard is not None and self.guard.running)

    @property
    def left(self) -> int:
        """Pins and texts that are still to be seen to."""
        return self.sleeper.left + (0 if self.guard is None else self.guard.left)

    def wake(self) -> bool:
        """Begin with the next work, if there is any. Call it only when the engine has none."""
        return self.sleeper.wake() or (self.guard is not None and self.guard.wake())

    def give_way(self) -> None:
        """Somebody asks for something: stop at once, and go on when there is nothing to do."""
        self.sleeper.give_way()
        if self.guard is not None:
            self.guard.give_way()

    def after(self, deltas: list[Delta]) -> list[Delta]:
        """What a step said that is not of this work."""
        deltas = self.sleeper.after(deltas)
        return deltas if self.guard is None else self.guard.after(deltas)

    def admit(self, request: Request) -> Request:
        """A request as it is to be served: see `Guard`."""
        return request if self.guard is None else self.guard.admit(request)

    def forget(self, request_id: str) -> None:
        """A request was refused or given up, or something was said in the model's place."""
        if self.guard is not None:
            self.guard.forget(request_id)

    def stats(self) -> Stats:
        """The engine's figures, with those of the guard."""
        stats = self.engine.stats()
        if self.guard is not None:
            stats.guard = self.guard.stats()
        return stats


def idle_of(engine: Engine) -> Idle:
    """The idle work of an engine, as its config asks for. Raises ConfigError for a file of pins
    that cannot be read."""
    return Idle(sleeper_of(engine), guard_of(engine))
