"""Prefixes that requests ask to have kept for a time: pins that end by themselves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ockham.api.async_llm import AsyncLLM
from ockham.api.prompts import Encoded
from ockham.api.server.caller import Caller
from ockham.core.errors import OckhamError
from ockham.engine.messages import CacheQuery, CacheReport, Pin, Unpin

MOST_SAMPLES = 32
"""Preambles whose tokens are remembered."""
PREFIX = "cache_control-"
"""What the names of these pins begin with."""
ALONE = "alone"
"""Behind an owner's name: one that has no other pins."""

log = logging.getLogger("ockham.server")


def digest(of: Any) -> bytes:
    """What tells a thing from all others that JSON has words for."""
    return hashlib.blake2b(msgspec.json.encode(of), digest_size=16).digest()


@dataclass(slots=True)
class _Kept:
    owner: str
    until_s: float


class KeptPrefixes:
    """Keeps prefixes pinned until nobody has used them for as long as was asked.

    An owner may have half as much pinned in this way as it may pin itself (`/v1/cache/pin`), so
    that there is room for pins by name. What is too much ends the pin that would end first.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._kept: dict[tuple[str, str], _Kept] = {}
        """By salt and name."""
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._samples: OrderedDict[bytes, list[int]] = OrderedDict()
        self._engine: Any = None

    async def sample(self, key: bytes, read: Callable[[], Awaitable[Encoded]]) -> list[int]:
        """The token ids of a prompt, read once as long as it is remembered. `key` is a digest of
        all that it is made of (`digest`)."""
        found = self._samples.get(key)
        if found is None:
            found = (await read()).token_ids
            self._samples[key] = found
            if len(self._samples) > MOST_SAMPLES:
                self._samples.popitem(last=False)
        else:
            self._samples.move_to_end(key)
        return found

    def keep(self, tokens: list[int], salt: str, caller: Caller, seconds: float) -> None:
        """Keep a prefix that was just computed, from now on for so many seconds. Does nothing for
        an empty one."""
        if not tokens:
            return
        if self._engine is not self._llm.ready:  # another engine, which has no pins
            self._engine = self._llm.ready
            self._kept.clear()
        name = PREFIX + hashlib.blake2b(array("i", tokens).tobytes(), digest_size=8).hexdigest()
        key, loop = (salt, name), asyncio.get_running_loop()
        until_s = loop.time() + seconds
        kept = self._kept.get(key)
        if kept is not None:
            kept.until_s = max(kept.until_s, until_s)
        elif key not in self._tasks:
            pin = Pin(name, tokens, salt, caller.name, 2 * caller.owners, lasting=False)
            task = loop.create_task(self._pin(key, pin, _Kept(caller.name, until_s)))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _pin(self, key: tuple[str, str], pin: Pin, kept: _Kept) -> None:
        engine = self._engine
        try:
            while (await self._ask(pin, only_check=True)).param == "prompt":
                alone = msgspec.structs.replace(pin, owner=f"{pin.owner} {ALONE}")
                fits = (await self._ask(alone, only_check=True)).error is None
                if not fits or not await self._let_go(kept.owner):
                    log.debug("A prefix of %d tokens is not kept.", len(pin.prompt_token_ids))
                    return
            if (await self._ask(pin, only_check=False)).error is not None:
                return
        except OckhamError:  # the engine is gone, and its pins with it
            return
        if engine is self._engine:
            self._kept[key] = kept
            self._wait(key, kept)

    def _wait(self, key: tuple[str, str], kept: _Kept) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(kept.until_s, self._end, key, kept, loop)

    def _end(self, key: tuple[str, str], kept: _Kept, loop: asyncio.AbstractEventLoop) -> None:
        if self._kept.get(key) is not kept:
            return
        if kept.until_s > loop.time():
            self._wait(key, kept)
            return
        task = loop.create_task(self._unpin(key))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _let_go(self, owner: str) -> bool:
        """Unpin the prefix of an owner that would end first, if there is one."""
        own = [key for key, kept in self._kept.items() if kept.owner == owner]
        if not own:
            return False
        await self._unpin(min(own, key=lambda key: self._kept[key].until_s))
        return True

    async def _unpin(self, key: tuple[str, str]) -> None:
        salt, name = key
        self._kept.pop(key, None)
        query = CacheQuery(ask_id=uuid.uuid4().hex, salt=salt, unpin=Unpin(name, salt))
        try:
            await self._llm.client.ask(query)
        except OckhamError:
            log.debug("The engine went before %s was unpinned.", name)

    async def _ask(self, pin: Pin, *, only_check: bool) -> CacheReport:
        query = CacheQuery(
            ask_id=uuid.uuid4().hex, salt=pin.cache_salt, pin=pin, only_check=only_check
        )
        return await self._llm.client.ask(query)
