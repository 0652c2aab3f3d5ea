"""What an engine in another process says about one request, and who counts what comes."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ockham.core.errors import OckhamError
from ockham.engine.mailbox import Mailbox
from ockham.engine.messages import Delta, Ready, Request, Stats


class Stream:
    """What the engine says about one request: at most one delta a choice waits to be read."""

    def __init__(self, request: Request, submitted_s: float) -> None:
        self.request_id = request.request_id
        self.submitted_s = submitted_s
        self.last_token_s: list[float | None] = [None] * request.params.n
        """When the newest token of each choice came, on the clock of `time.monotonic`."""
        self.choices_left = request.params.n
        self._mailbox = Mailbox()
        self._news = asyncio.Event()
        self._error: OckhamError | None = None

    def put(self, delta: Delta) -> None:
        self._mailbox.put([delta])
        self._news.set()

    def fail(self, error: OckhamError) -> None:
        """End the stream with an error, which follows whatever still waits."""
        self._error = error
        self._news.set()

    async def read(self) -> list[Delta]:
        """Wait for news and take all of it; a choice's deltas since the last read are one.

        Raises what the engine refused the request with, or `EngineDead`.
        """
        await self._news.wait()
        deltas = [message for message in self._mailbox.take() if isinstance(message, Delta)]
        if self._error is None:
            self._news.clear()
        elif not deltas:
            raise self._error
        return deltas


class Observer(Protocol):
    """Someone who counts: told of everything that comes, as it comes, whoever reads it when."""

    def started(self, ready: Ready) -> None:
        """An engine is ready; its counters start from zero."""

    def stats(self, stats: Stats) -> None: ...

    def delta(self, stream: Stream, delta: Delta, now_s: float) -> None:
        """Called before `stream.last_token_s` is brought up to date."""

    def aborted(self, stream: Stream) -> None:
        """Nobody waits for the request any more; its `choices_left` are being given up."""

    def died(self) -> None: ...
