"""A request's share of time, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ockham.api.server.gate import Gate
from ockham.api.server.job import Job
from ockham.core.errors import RequestTimeout
from ockham.core.outputs import RequestOutput
from tests.helpers.clocks import run_moved
from tests.helpers.serving import ask

PATIENCE_S = 3600.0


class Slow:
    """In the place of an `AsyncLLM`: something comes of each request every `pause_s`, `most`
    times."""

    def __init__(self, pause_s: float, most: int) -> None:
        self.pause_s, self.most = pause_s, most
        self.running = 0

    async def run(self, request: Any, kind: str) -> AsyncGenerator[RequestOutput, None]:
        self.running += 1
        try:
            for _ in range(self.most):
                await asyncio.sleep(self.pause_s)
                yield RequestOutput(request.request_id, None, [5], [], True)
        finally:
            self.running -= 1


async def timed(llm: Slow, prompts: int) -> tuple[float, int, str]:
    """How long a job took, how much came of it, and why it was given up, if it was."""
    gate = Gate(8, 0)
    job = Job(llm, gate, [ask(str(i), [5]) for i in range(prompts)], PATIENCE_S)  # type: ignore[arg-type]
    loop, came, reason = asyncio.get_running_loop(), 0, ""
    began_s = loop.time()
    try:
        async for _ in job.deltas():
            came += 1
    except RequestTimeout as error:
        reason = str(error)
    await asyncio.sleep(0)
    assert (llm.running, gate.requests, gate.sequences) == (0, 0, 0)
    return loop.time() - began_s, came, reason


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("pause_s", [7.0, 1000.0, 1e9])
def test_what_takes_too_long_is_given_up_when_its_time_is_up(prompts: int, pause_s: float) -> None:
    """However often something comes of it."""
    seconds, came, reason = run_moved(timed(Slow(pause_s, 10**6), prompts))
    assert seconds == pytest.approx(PATIENCE_S)
    assert came == prompts * int(PATIENCE_S / pause_s)
    assert "did not finish within 3600 s" in reason


@pytest.mark.parametrize("prompts", [1, 3])
def test_what_ends_in_time_is_whole(prompts: int) -> None:
    seconds, came, reason = run_moved(timed(Slow(PATIENCE_S / 4.01, 4), prompts))
    assert seconds == pytest.approx(PATIENCE_S / 4.01 * 4)
    assert (came, reason) == (4 * prompts, "")
