"""Threads for work that would hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

INLINE_CHARACTERS = 2048
"""More is done in a thread, so that the event loop is never held up for long."""
HUGE_CHARACTERS = 256 << 10
"""More has a thread of its own, so that it holds up none but its like."""


class Threads:
    """A few threads, one of them for what is huge."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="ockham-tokenize")
        self._huge_thread = ThreadPoolExecutor(1, thread_name_prefix="ockham-tokenize-huge")

    async def in_thread(self, size: int, work: Callable[[], T]) -> T:
        """Do work on so many characters, bytes or entries: here if they are few, else in a
        thread."""
        if size <= INLINE_CHARACTERS:
            return work()
        threads = self._threads if size <= HUGE_CHARACTERS else self._huge_thread
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def shutdown(self) -> None:
        """Begin nothing more."""
        for threads in (self._threads, self._huge_thread):
            threads.shutdown(wait=False, cancel_futures=True)
