"""A model that may be in memory: in which phase it is, who uses it and who waits for it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ockham.core.errors import OckhamError

T = TypeVar("T")


class Loader(Protocol[T]):
    """What loads models and lets them go. May raise `OckhamError`."""

    async def plan(self, name: str) -> int:
        """Bytes that a model takes, process and all, found out before anything is loaded."""

    async def load(self, name: str, died: Callable[[], None]) -> T:
        """Load a model. `died` is called if it ends by itself afterwards."""

    async def close(self, name: str, loaded: T) -> None:
        """Let go of a model that nobody uses, also of one that died."""


class Phase(enum.Enum):
    OUT = "unloaded"
    LOADING = "loading"
    IN = "loaded"
    LEAVING = "loaded, and taking nobody in"
    CLOSING = "unloading"


@dataclass(slots=True, eq=False)
class Resident(Generic[T]):
    """A model that was loaded once, and how many use it. `value` is what the loader gave."""

    name: str
    value: T
    since_s: float
    uses: int = 0
    died: bool = False


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """Somebody who waits for a model. `number` is the order in which they came."""

    number: int
    arrived: asyncio.Future[Resident[T]]
    patient: bool


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """A model, in memory or not. Times are the event loop's."""

    name: str
    stay_s: float
    """How long it stays when nobody uses it."""
    phase: Phase = Phase.OUT
    resident: Resident[T] | None = None
    nbytes: int | None = None
    tickets: list[Ticket[T]] = field(default_factory=list)
    used_s: float = 0.0
    """When it was used last."""
    settled_s: float = 0.0
    """Until when it need not make room while it is used."""
    sent_away: bool = False
    """Whether somebody said that it should go."""
    died: bool = False
    """Whether it died before its loading was done."""
    failures: int = 0
    failed: OckhamError | None = None
    retry_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    """What plans, loads or closes it."""

    @property
    def order(self) -> tuple[bool, int]:
        """Whose turn it is to get room: the patient wait behind the others."""
        return min((ticket.patient, ticket.number) for ticket in self.tickets)

    @property
    def idle(self) -> bool:
        return self.resident is not None and not self.resident.uses
