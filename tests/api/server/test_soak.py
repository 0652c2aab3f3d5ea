"""Thousands of requests of random shape, in bursts, with clients that leave: none lost, none wrong.

2,000 requests by default; `OCKHAM_SOAK=10` (or `make soak`) sends ten times as many.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ockham import LLM, SamplingParams
from ockham.kernels.native import core
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

REQUESTS = 2000 * int(os.environ.get("OCKHAM_SOAK", "1"))
SHAPES = 250
"""Different requests; each is sent several times, at different moments, beside different others."""
BURST = 60
LEAVE = 0.15
"""Share of the clients that leave before the end."""
SEED = 20260
GROWTH_BYTES = 24 << 20
ENGINE = {
    "backend": "cpu",  # which has the same bits whatever is computed beside them
    "max_model_len": 512,
    "kv_cache_memory_bytes": 136 << 10,
    "max_num_seqs": 32,
}
"""A pool of 544 tokens: full bursts do not fit, so sequences wait, and are preempted."""


@dataclass
class Shape:
    """A request that can be repeated exactly, and what it gave when it ran alone."""

    body: dict[str, Any]
    expected: list[list[int]] = field(default_factory=list)


@dataclass
class Tally:
    finished: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


def random_shape(rng: random.Random) -> Shape:
    count = int(rng.choice([3, 20, 60, 120, 200]) * rng.uniform(0.5, 1.5))
    body: dict[str, Any] = {
        "prompt": [rng.randrange(4, 4096) for _ in range(max(1, count))],
        "max_tokens": rng.choice([1, 2, 4, 8, 16, 32]),
        "temperature": 0.0,
        "seed": rng.randrange(2**63),
        "n": 1,
    }
    if rng.random() < 0.2:
        body |= {"temperature": rng.choice([0.7, 1.0]), "n": rng.choice([1, 2, 3])}
    if rng.random() < 0.3:
        body["logprobs"] = rng.choice([0, 3])
    if rng.random() < 0.2:
        body["ignore_eos"] = True
    if rng.random() < 0.1:
        body["stop_token_ids"] = rng.sample(range(4096), 400)
    return Shape(body)


def run_alone(shapes: list[Shape], llm: LLM) -> None:
    """Each request by itself, with nothing beside it."""
    for shape in shapes:
        given = {k: v for k, v in shape.body.items() if k != "prompt"}
        (out,) = llm.generate([shape.body["prompt"]], SamplingParams(**given), use_tqdm=False)
        shape.expected = [choice.token_ids for choice in out.outputs]


async def send(client: httpx.AsyncClient, shape: Shape, rng: random.Random, tally: Tally) -> None:
    """Send one request, streamed or whole, and look at what comes; or leave before it does."""
    body = {**shape.body, "return_token_ids": True, "stream": rng.random() < 0.6}
    leaves = rng.random() < LEAVE
    await asyncio.sleep(rng.uniform(0, 0.2))
    reading = asyncio.create_task(_read(client, body))
    if leaves:
        await asyncio.sleep(rng.expovariate(20.0))
        if not reading.done():
            reading.cancel()
            tally.left += 1
            return
    got = await reading
    tally.finished += 1
    for index, (tokens, expected) in enumerate(zip(got, shape.expected, strict=True)):
        if tokens != expected:
            tally.wrong.append(f"choice {index}: {tokens} instead of {expected}: {shape.body}")


async def _read(client: httpx.AsyncClient, body: dict[str, Any]) -> list[list[int]]:
    """The token ids of each choice."""
    tokens: list[list[int]] = [[] for _ in range(body["n"])]
    ended = [False] * body["n"]
    if not body["stream"]:
        response = await client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        chunks = [response.json()]
    else:
        chunks = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert not ended[choice["index"]]
            tokens[choice["index"]] += choice["token_ids"]
            ended[choice["index"]] = choice["finish_reason"] is not None
    assert all(ended)
    return tokens


async def soak(server: LiveServer, shapes: list[Shape]) -> tuple[Tally, list[int]]:
    """Send all of it; what came, and the memory of both processes at each tenth of the way."""
    rng = random.Random(SEED)
    tally, memory = Tally(), []
    processes = [psutil.Process(server.process.pid), server.engine]
    limits = httpx.Limits(max_connections=BURST, max_keepalive_connections=BURST // 2)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:
        sent = 0
        while sent < REQUESTS:
            burst = min(rng.randint(1, BURST), REQUESTS - sent)
            chosen = [rng.choice(shapes) for _ in range(burst)]
            await asyncio.gather(
                *(send(client, shape, random.Random(rng.random()), tally) for shape in chosen)
            )
            if sent * 10 // REQUESTS != (sent + burst) * 10 // REQUESTS:
                memory.append(sum(process.memory_info().rss for process in processes))
            sent += burst
    return tally, memory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("soak"), tokenizer=True)


@pytest.mark.timeout(1500)
def test_thousands_of_requests_are_all_answered_and_all_right(checkpoint, tmp_path):
    print(f"seed {SEED}, {REQUESTS} requests")
    rng = random.Random(SEED + 1)
    shapes = [random_shape(rng) for _ in range(SHAPES)]
    llm = LLM(str(checkpoint), **ENGINE)
    run_alone(shapes, llm)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items()]
    with LiveServer(checkpoint, tmp_path, *flags, "--no-access-log") as server:
        tally, memory = asyncio.run(soak(server, shapes))
        server.wait_idle()
        preemptions = server.metric("ockham_num_preemptions_total")
        aborted = server.metric("ockham_request_success_total", finished_reason="abort")
        faults = server.metric("ockham_engine_restarts_total")
        log = server.log
    growth = memory[-1] - memory[len(memory) // 4]
    print(
        f"{tally.finished} finished, {tally.left} left, "
        f"{preemptions:.0f} preemptions, {aborted:.0f} aborts seen, memory "
        f"{memory[0] / 2**20:.0f} to {memory[-1] / 2**20:.0f} MiB"
    )
    assert not tally.wrong, tally.wrong[:3]
    assert tally.finished + tally.left == REQUESTS
    assert preemptions > 0
    assert faults == 0
    assert "Traceback" not in log
    assert growth < GROWTH_BYTES, [f"{size / 2**20:.1f} MiB" for size in memory]
