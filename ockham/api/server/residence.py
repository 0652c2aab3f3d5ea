"""Which of a server's models are in memory: who is let in, who waits, and who makes room.

Requests enter a model and leave it again. A model that is not in memory is loaded when a request
waits for it. If there is no room, models that nobody uses go first, the least recently used one
before others; after them one that is used takes nobody in any more, and goes when those inside have
left.

Nobody starves: models get room in the order in which the first request came that waits for each,
and what came for a model that is to make room waits behind those that it makes room for. A model
that was just loaded takes requests for as long as its loading took, so that two that do not fit
together spend at least half of the time with answers.

A model that cannot be loaded fails those who wait for it. It is tried again by a request that comes
after a pause, which grows with each failure.

This file knows neither HTTP nor engines: what is loaded is whatever its `Loader` gives.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Coroutine, Mapping
from typing import Any, Generic, TypeVar

from ockham.api.server.resident import Entry, Loader, Phase, Resident, Ticket
from ockham.core.errors import DoesNotFit, EngineDead, InvalidRequest, OckhamError, fault
from ockham.core.units import readable

log = logging.getLogger("ockham.server")

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MOST_FAILURES = 10
"""That make a pause longer."""
STABLE_S = 60.0
"""A model that lived this long has no failures behind it."""
LONGEST_STAY_S = 30.0
"""For at most so long a model that was just loaded need not make room while it is used."""
PATIENCE_S = 30.0
"""A model that was used so recently makes no room for the patient."""


class Residence(Generic[T]):
    """The models that may be in memory together: at most `most` that take `budget_bytes`."""

    def __init__(
        self,
        loader: Loader[T],
        stays_s: Mapping[str, float],
        budget_bytes: int,
        most: int | None = None,
    ) -> None:
        """`stays_s`: of each model, for how many seconds it stays when nobody uses it."""
        self._loader = loader
        self._entries = {name: Entry[T](name, stay_s) for name, stay_s in stays_s.items()}
        self._stays_s = stays_s
        self._budget_bytes = budget_bytes
        self._most = len(self._entries) if most is None else most
        self._numbers = itertools.count()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None

    # -- who uses what -------------------------------------------------------------------------

    async def enter(self, name: str, *, patient: bool = False) -> Resident[T]:
        """Use a model, which is loaded if it is not there; `leave` ends that. The `patient` wait
        behind all others, and none that is used or was used just now makes room for them. Raises
        `EngineDead` if it cannot be loaded now, `InvalidRequest` if it can never be."""
        entry = self._entries[name]
        if entry.phase is Phase.IN:
            return self._admit(entry)
        self._check(entry)
        future: asyncio.Future[Resident[T]] = asyncio.get_running_loop().create_future()
        ticket = Ticket(next(self._numbers), future, patient)
        entry.tickets.append(ticket)
        self._advance()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(future.result())  # it was let in as it gave up
            raise
        finally:
            if ticket in entry.tickets:
                entry.tickets.remove(ticket)
                self._advance()

    def enter_now(self, name: str) -> Resident[T] | None:
        """Use a model that takes requests without delay; None if it does not."""
        entry = self._entries[name]
        return self._admit(entry) if entry.phase is Phase.IN else None

    def leave(self, resident: Resident[T]) -> None:
        """End a use of a model."""
        entry, resident.uses = self._entries[resident.name], resident.uses - 1
        if resident.died:
            if not resident.uses:
                self._spawn(self._bury(resident))
            return
        entry.used_s = self._now()
        if not resident.uses:
            self._wait(entry)
        self._advance()

    def unload(self, name: str) -> str:
        """Let a model go once nobody uses it any more; the state that it is in."""
        entry = self._entries[name]
        if entry.phase in (Phase.LOADING, Phase.IN, Phase.LEAVING):
            entry.sent_away = True
            if entry.phase is not Phase.LOADING:
                entry.phase = Phase.LEAVING
            self._advance()
        return self.state(name)

    def stay(self, name: str, seconds: float) -> None:
        """Have a model stay for so long when nobody uses it."""
        entry = self._entries[name]
        entry.stay_s = seconds
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.phase is Phase.IN and entry.idle:
            self._wait(entry)
            self._advance()

    def close(self) -> None:
        """Let nobody in any more; those who wait fail with `EngineDead`."""
        self._closed = True
        for entry in self._entries.values():
            self._fail(entry, EngineDead("The server is shutting down."))

    async def shutdown(self) -> None:
        """Let go of everything, used or not."""
        self.close()
        for timer in [self._wake, *(entry.timer for entry in self._entries.values())]:
            if timer is not None:
                timer.cancel()
        for entry in self._entries.values():
            if entry.task is not None and entry.phase is not Phase.CLOSING:
                entry.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        there = [e.resident for e in self._entries.values() if e.resident is not None]
        for entry in self._entries.values():
            entry.resident, entry.phase = None, Phase.OUT
        await asyncio.gather(*(self._loader.close(each.name, each.value) for each in there))

    @property
    def closed(self) -> bool:
        return self._closed

    # -- what there is to say ------------------------------------------------------------------

    def state(self, name: str) -> str:
        """ "unloaded", "loading", "loaded" or "unloading"."""
        entry = self._entries[name]
        phase = entry.phase
        if phase is Phase.LEAVING:
            phase = Phase.CLOSING if entry.sent_away else Phase.IN
        return str(phase.value)

    def resident(self, name: str) -> Resident[T] | None:
        """The model, if it is in memory."""
        return self._entries[name].resident

    def nbytes(self, name: str) -> int | None:
        """The memory that the model takes when it is loaded, if that is known."""
        return self._entries[name].nbytes

    def failed(self, name: str) -> str | None:
        """Why the model could not be loaded the last time, or how it died."""
        error = self._entries[name].failed
        return None if error is None else str(error)

    def expires_in_s(self, name: str) -> float | None:
        """In how many seconds an unused model goes; None for one that is used, or stays."""
        entry = self._entries[name]
        if not entry.idle or math.isinf(entry.stay_s):
            return None
        return max(0.0, entry.used_s + entry.stay_s - self._now())

    # -- room ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start whatever can be started now, and have others make room."""
        if self._closed:
            return
        for entry in self._entries.values():
            if entry.phase is Phase.LEAVING and not entry.sent_away:
                entry.phase = Phase.IN  # who wanted its room may have gone: it is asked anew
            elif entry.phase is Phase.LEAVING and entry.idle:
                self._start_closing(entry)
        self._give_room()
        for entry in self._entries.values():
            if entry.phase is Phase.IN:
                self._admit_all(entry)

    def _give_room(self) -> None:
        """Go through the models that are waited for, in order."""
        there = [e for e in self._entries.values() if e.phase is not Phase.OUT]
        free = self._budget_bytes - sum(entry.nbytes or 0 for entry in there)
        places = self._most - len(there)
        asked = False
        waiting = [e for e in self._entries.values() if e.tickets and e.phase is Phase.OUT]
        for entry in sorted(waiting, key=lambda entry: entry.order):
            if entry.task is not None:  # it is being planned
                continue
            if entry.nbytes is None:
                self._start(entry, self._plan(entry))
            elif entry.nbytes <= free and places > 0:
                entry.phase = Phase.LOADING
                self._start(entry, self._load(entry))
                free, places = free - entry.nbytes, places - 1
            elif not asked:
                asked = True
                free, places = self._make_room(entry, free, places)

    def _make_room(self, entry: Entry[T], free: int, places: int) -> tuple[int, int]:
        """Have others go for a model; the room that those behind it may take meanwhile."""
        assert entry.nbytes is not None, "it has been planned"
        going = [e for e in self._entries.values() if e.phase in (Phase.CLOSING, Phase.LEAVING)]
        short = entry.nbytes - free - sum(each.nbytes or 0 for each in going)
        lacking = 1 - places - len(going)
        settled = [e for e in self._entries.values() if e.phase is Phase.IN]
        settled.sort(key=lambda each: (not each.idle, each.used_s))
        chosen: list[Entry[T]] = []
        for each in settled:
            if short <= 0 and lacking <= 0:
                break
            if not each.idle and entry.order[0]:
                break  # nobody who is used goes for the patient
            until_s = each.used_s + PATIENCE_S if entry.order[0] else each.settled_s
            if (entry.order[0] or not each.idle) and until_s > self._now():
                self._wake_at(until_s)
                break
            chosen.append(each)
            short, lacking = short - (each.nbytes or 0), lacking - 1
        if short > 0 or lacking > 0:
            return 0, 0  # others are being loaded, or have just been
        busy = [each for each in chosen if not each.idle]
        for each in busy or chosen:
            if each.idle:
                self._start_closing(each)
            else:
                each.phase = Phase.LEAVING
        return min(free, -short), max(0, min(places, -lacking))

    def _wake_at(self, when_s: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_at(when_s, self._advance)

    # -- loading and letting go ----------------------------------------------------------------

    async def _plan(self, entry: Entry[T]) -> None:
        try:
            nbytes = await self._loader.plan(entry.name)
            if nbytes > self._budget_bytes:
                raise DoesNotFit(
                    f"it takes {readable(nbytes)}, and all models together may take "
                    f"{readable(self._budget_bytes)}."
                )
        except Exception as error:
            self._not_loaded(entry, error)
        else:
            entry.nbytes = nbytes
        self._end_task(entry)

    async def _load(self, entry: Entry[T]) -> None:
        begin_s = self._now()
        entry.died, entry.stay_s = False, self._stays_s[entry.name]
        try:
            value = await self._loader.load(entry.name, lambda: self._died(entry))
        except Exception as error:
            entry.phase, entry.nbytes = Phase.OUT, None  # its files may be others the next time
            entry.sent_away = False
            self._not_loaded(entry, error)
        else:
            now_s = self._now()
            entry.resident = Resident(entry.name, value, now_s)
            entry.phase, entry.used_s = Phase.IN, now_s
            entry.settled_s = now_s + min(LONGEST_STAY_S, now_s - begin_s)
            entry.failed = None
            self._admit_all(entry)  # before anybody may want its room
            if entry.died:
                self._died(entry)
            elif entry.sent_away:
                entry.phase = Phase.LEAVING
            elif entry.idle:
                self._wait(entry)
        self._end_task(entry)

    def _start_closing(self, entry: Entry[T]) -> None:
        entry.phase = Phase.CLOSING
        self._start(entry, self._close(entry))

    async def _close(self, entry: Entry[T]) -> None:
        resident = entry.resident
        assert resident is not None, "what is closed was loaded"
        if self._now() - resident.since_s > STABLE_S:
            entry.failures = 0
        try:
            await self._loader.close(entry.name, resident.value)
        finally:
            entry.resident, entry.phase, entry.sent_away = None, Phase.OUT, False
        self._end_task(entry)

    async def _bury(self, resident: Resident[T]) -> None:
        await self._loader.close(resident.name, resident.value)

    def _died(self, entry: Entry[T]) -> None:
        """A model ended by itself. What it takes is free; its users have been told."""
        if entry.phase is Phase.LOADING:
            entry.died = True
            return
        resident = entry.resident
        if resident is None or entry.phase is Phase.CLOSING:
            return
        resident.died = True
        entry.resident, entry.phase, entry.sent_away = None, Phase.OUT, False
        if self._now() - resident.since_s > STABLE_S:
            entry.failures = 0
        error = EngineDead(
            f"The engine of {entry.name} ended by itself; it is loaded again by the next request."
        )
        log.error("%s", error)
        # The first time it is tried again at once.
        self._pause(entry, error, 2.0 ** (entry.failures - 1) if entry.failures else 0.0)
        if not resident.uses:
            self._spawn(self._bury(resident))
        self._advance()

    def _not_loaded(self, entry: Entry[T], error: Exception) -> None:
        """A model could not be planned, or not be loaded."""
        if not isinstance(error, OckhamError):
            log.error("Loading %s met a fault.", entry.name, exc_info=error)
            error = fault()
        said = f"{entry.name} cannot be loaded: {error}"
        log.error("%s", said)
        never = isinstance(error, DoesNotFit)
        kind = InvalidRequest(said, "model", "model_not_loaded") if never else EngineDead(said)
        self._pause(entry, kind, 2.0**entry.failures)

    def _pause(self, entry: Entry[T], error: OckhamError, pauses: float) -> None:
        """Do not try a model again for so many times the first pause. Who waits for it fails."""
        entry.failed, entry.failures = error, min(entry.failures + 1, MOST_FAILURES)
        pause_s = min(LONGEST_PAUSE_S, pauses * FIRST_PAUSE_S)
        entry.retry_s = self._now() + pause_s
        if pause_s:
            self._fail(entry, error)

    def _check(self, entry: Entry[T]) -> None:
        """Raise why a model cannot be waited for now."""
        if self._closed:
            raise EngineDead("The server is shutting down.")
        left_s = entry.retry_s - self._now()
        if entry.phase is Phase.OUT and entry.failed is not None and left_s > 0:
            raise entry.failed

    def _fail(self, entry: Entry[T], error: OckhamError) -> None:
        tickets, entry.tickets = entry.tickets, []
        for ticket in tickets:
            if not ticket.arrived.done():
                ticket.arrived.set_exception(error)

    # -- inside --------------------------------------------------------------------------------

    def _admit(self, entry: Entry[T]) -> Resident[T]:
        assert entry.resident is not None, "it is in memory"
        entry.resident.uses += 1
        entry.used_s = self._now()
        return entry.resident

    def _admit_all(self, entry: Entry[T]) -> None:
        tickets, entry.tickets = entry.tickets, []
        for ticket in tickets:
            if not ticket.arrived.done():
                ticket.arrived.set_result(self._admit(entry))

    def _wait(self, entry: Entry[T]) -> None:
        """Have a model that nobody uses go when its time is over."""
        if entry.stay_s <= 0:
            entry.sent_away, entry.phase = True, Phase.LEAVING
        elif entry.timer is None and not math.isinf(entry.stay_s):
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_at(entry.used_s + entry.stay_s, self._expire, entry)

    def _expire(self, entry: Entry[T]) -> None:
        entry.timer = None
        if entry.phase is not Phase.IN or not entry.idle:
            return
        if entry.used_s + entry.stay_s > self._now():
            self._wait(entry)  # it was used meanwhile
        else:
            self._start_closing(entry)

    def _start(self, entry: Entry[T], work: Coroutine[Any, Any, None]) -> None:
        entry.task = self._spawn(work)

    def _end_task(self, entry: Entry[T]) -> None:
        entry.task = None
        self._advance()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Loading or letting go of a model met a fault.", exc_info=error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
