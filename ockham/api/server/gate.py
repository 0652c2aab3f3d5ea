"""Who is let in: a bounded number of sequences, and nobody new once the server shuts down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ockham.api.server.errors import HttpError
from ockham.core.errors import InvalidRequest, Overloaded


class Gate:
    """Counts the sequences (prompts times n) of the requests that are being served."""

    def __init__(self, running: int, waiting: int) -> None:
        """At most `running` + `waiting` sequences are let in at a time."""
        self._most = running + waiting
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.sequences = 0
        self.requests = 0

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self, sequences: int) -> None:
        """Raise `InvalidRequest` if so many could never be let in, `Overloaded` if they cannot be
        now, and `HttpError` 503 if nobody is."""
        if self._closed:
            raise HttpError(503, "The server is shutting down; send the request to another one.")
        if sequences > self._most:
            raise InvalidRequest(
                f"The request asks for {sequences} completions (prompts times n); at most "
                f"{self._most} are taken at a time (max_num_seqs plus max_queue). Split it.",
                "n",
            )
        if self.sequences + sequences > self._most:
            raise Overloaded(
                f"{self.sequences} completions run or wait, of at most {self._most}; try again "
                "later."
            )

    @contextmanager
    def admit(self, sequences: int) -> Iterator[None]:
        """Hold the place of so many sequences. Raises what `check` does."""
        self.check(sequences)
        self.sequences += sequences
        self.requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.sequences -= sequences
            self.requests -= 1
            if not self.requests:
                self._empty.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everybody has left; False if that took longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
