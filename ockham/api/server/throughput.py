"""A line in the log, every few seconds while there is work: what the engine does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ockham.core.ledger import Ledger
from ockham.engine.messages import Stats

log = logging.getLogger("ockham.server")


async def report(stats: Callable[[], Stats], every_s: float, before_each: str = "") -> None:
    """Say what the engine's statistics gained, for as long as they gain anything; `before_each`
    stands before each line."""
    before, before_s = stats(), time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        now, now_s = stats(), time.monotonic()
        line = describe(before, now, now_s - before_s)
        if line is not None:
            log.info("%s%s", before_each, line)
        before, before_s = now, now_s


def describe(before: Stats, now: Stats, seconds: float) -> str | None:
    """What happened between two statistics; None if nothing did and nothing is to be done."""
    # A new engine counts from zero.
    earlier = before.ledger if now.steps >= before.steps else Ledger()
    prompt, generated, reused = (
        getattr(now.ledger, name) - getattr(earlier, name)
        for name in ("prompt_tokens", "generated_tokens", "prompt_tokens_reused")
    )
    if not (prompt or generated or now.running or now.waiting):
        return None
    share = f"{100.0 * reused / prompt:.0f}%" if prompt else "-"
    return (
        f"{now.running} running, {now.waiting} waiting; {prompt / seconds:.1f} prompt and "
        f"{generated / seconds:.1f} generated tokens/s; {share} of prompt tokens from the cache"
    )
