"""Prefixes that are kept for a time, in an engine of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ockham.api.async_llm import AsyncLLM
from ockham.api.prompts import Encoded
from ockham.api.server.caller import Caller
from ockham.api.server.kept import PREFIX, KeptPrefixes, digest
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import CacheQuery, PinnedPrefix

Check = Callable[[AsyncLLM, KeptPrefixes], Awaitable[None]]


def run(tiny: Path, check: Check) -> None:
    async def main() -> None:
        # Half of 64 pages of 16 tokens may be pinned, and half of that in this way.
        settings = {"kv_cache_memory_bytes": 64 * 16 * 256, "block_size": 16}
        async with AsyncLLM(str(tiny), max_model_len=512, **settings) as llm:
            await check(llm, KeptPrefixes(llm))

    asyncio.run(main())


async def compute(llm: AsyncLLM, tokens: list[int]) -> None:
    async for _ in llm.generate(tokens, SamplingParams(max_tokens=1)):
        pass


async def pins(llm: AsyncLLM) -> list[PinnedPrefix]:
    return (await llm.client.ask(CacheQuery(ask_id="pins", salt=None))).pins


async def until(llm: AsyncLLM, lengths: list[int]) -> None:
    """Wait until pins of these lengths are there, and no others."""
    async with asyncio.timeout(10.0):
        while sorted(pin.tokens for pin in await pins(llm)) != lengths:
            await asyncio.sleep(0.02)


def test_a_prefix_is_kept_for_as_long_as_it_is_used(tiny: Path) -> None:
    async def check(llm: AsyncLLM, kept: KeptPrefixes) -> None:
        tokens = list(range(10, 50))
        await compute(llm, tokens)
        begin_s = asyncio.get_running_loop().time()
        kept.keep(tokens, "", Caller(), 0.4)
        kept.keep(tokens, "", Caller(), 0.1)
        await until(llm, [40])
        [pin] = await pins(llm)
        assert pin.name.startswith(PREFIX)
        kept.keep(tokens, "", Caller(), 0.8)
        await until(llm, [])
        assert asyncio.get_running_loop().time() - begin_s >= 0.8

    run(tiny, check)


def test_the_prefix_that_would_end_first_makes_room(tiny: Path) -> None:
    async def check(llm: AsyncLLM, kept: KeptPrefixes) -> None:
        for number, seconds in enumerate((90.0, 60.0)):
            tokens = list(range(100 * number + 1, 100 * number + 91 + number))
            await compute(llm, tokens)
            kept.keep(tokens, "", Caller(), seconds)
            await until(llm, [90, 91][: number + 1])
        tokens = list(range(300, 392))
        await compute(llm, tokens)
        kept.keep(tokens, "", Caller(), 30.0)
        await until(llm, [90, 92])
        huge = list(range(400, 400 + 300))
        await compute(llm, huge)
        kept.keep(huge, "", Caller(), 30.0)  # takes more than all of them may
        await asyncio.sleep(0.2)
        await until(llm, [90, 92])

    run(tiny, check)


def test_samples_are_read_once(tiny: Path) -> None:
    async def check(llm: AsyncLLM, kept: KeptPrefixes) -> None:
        reads: list[int] = []

        async def sample(of: int) -> list[int]:
            async def read() -> Encoded:
                reads.append(of)
                return await llm.read([of])

            return await kept.sample(digest(of), read)

        assert [await sample(1), await sample(2), await sample(1)] == [[1], [2], [1]]
        assert reads == [1, 2]

    run(tiny, check)
