"""Who is let in: a bounded number of sequences, shared fairly, and nobody once the server ends."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ockham.api.server.errors import HttpError
from ockham.core.errors import InvalidRequest, Overloaded
from ockham.engine.messages import Request


class Gate:
    """Counts the sequences (prompts times n) of the requests that are being served.

    When all places are taken, a tenant that holds fewer than an equal share of them is let in all
    the same, so that whoever fills the queue is refused first. With T tenants the sum stays below
    1 + 1/2 + ... + 1/T times the places.
    """

    def __init__(self, running: int, waiting: int) -> None:
        """So many sequences are let in at a time, as many as run and wait."""
        self._most = running + waiting
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._held: dict[str, int] = {}
        """Of each tenant, its sequences."""
        self.admitted: dict[int, tuple[float, Sequence[Request]]] = {}
        """What is being served: when each was let in, and the engine's requests."""
        self._numbers = itertools.count()
        self.sequences = 0
        self.requests = 0

    @property
    def most(self) -> int:
        """The most sequences that may be let in at a time."""
        return self._most

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self, sequences: int, tenant: str = "") -> None:
        """Raise `InvalidRequest` if so many could never be let in, `Overloaded` if they cannot be
        now, and `HttpError` 503 if nobody is. Says nothing of other tenants."""
        if self._closed:
            raise HttpError(503, "The server is shutting down; send the request to another one.")
        if sequences > self._most:
            raise InvalidRequest(
                f"The request asks for {sequences} completions (prompts times n); at most "
                f"{self._most} are taken at a time (max_num_seqs plus max_queue). Split it.",
                "n",
            )
        held = self._held.get(tenant, 0)
        share = self._most // (len(self._held) + (tenant not in self._held))
        if self.sequences + sequences > self._most and held + sequences > share:
            raise Overloaded(
                f"The queue is full, and {held} completions of yours run or wait in it; try again "
                "later."
            )

    @contextmanager
    def admit(
        self, sequences: int, tenant: str = "", requests: Sequence[Request] = ()
    ) -> Iterator[None]:
        """Hold the place of so many sequences, those of `requests`. Raises what `check` does."""
        self.check(sequences, tenant)
        number = next(self._numbers)
        self.admitted[number] = time.monotonic(), requests
        self._held[tenant] = self._held.get(tenant, 0) + sequences
        self.sequences += sequences
        self.requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            del self.admitted[number]
            self.sequences -= sequences
            self._held[tenant] -= sequences
            if not self._held[tenant]:
                del self._held[tenant]
            self.requests -= 1
            if not self.requests:
                self._empty.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    async def quiet(self) -> None:
        """Wait until nobody is being served."""
        await self._empty.wait()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everybody has left; False if that took longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
