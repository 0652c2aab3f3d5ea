"""Mixed requests over four models of which two fit together: none lost, none wrong, memory flat.

Three generate and one embeds.

12 clients for 4 seconds by default; `OCKHAM_MODELS_SOAK_S=1200` (or `make models-soak`) has 64
clients for so many seconds, and after that as long with models that all fit.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ockham.kernels.native import core
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

LONG_S = float(os.environ.get("OCKHAM_MODELS_SOAK_S", "0"))
SECONDS = LONG_S or 4.0
CLIENTS = 64 if LONG_S else 12
EMBEDS = "e"
NAMES = ("a", "b", "c", EMBEDS)
SHAPES = 8
LEAVE = 0.05
"""Share of the clients that leave before the end."""
WAIT_S = 300.0
"""More than a request can wait where nobody starves."""
SEED = 4711
GROWTH_BYTES = 24 << 20
FLAGS = (
    *("--memory-bytes", "160M", "--max-num-seqs", "16", "--max-model-len", "256"),
    # On a loaded machine a client may take long from its connection to its request.
    *("--header-timeout", "300", "--idle-timeout", "600"),
)
ROOM = {"two fit": "680M", "all fit": "4G"}


def shape(number: int) -> tuple[str, dict[str, Any]]:
    """A request that can be repeated exactly: its route and its body, without the model."""
    rng = random.Random(number)
    body = {"max_tokens": rng.choice([2, 8, 24]), "temperature": 0, "ignore_eos": True}
    if number % 2:
        text = " ".join(rng.choice(["one", "two", "three"]) for _ in range(rng.randrange(2, 20)))
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body}
    prompt = [rng.randrange(4, 4096) for _ in range(rng.randrange(2, 60))]
    return "/v1/completions", {"prompt": prompt, **body}


async def said(client: httpx.AsyncClient, model: str, number: int, stream: bool) -> str:
    """The text of the answer, which must be whole; of an embedding, its values."""
    if model == EMBEDS:
        return await embedded(client, number)
    path, body = shape(number)
    body = {**body, "model": model, "stream": stream}
    if not stream:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    parts, ended = [], False
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
                ended = ended or choice["finish_reason"] is not None
    assert ended
    return "".join(parts)


async def embedded(client: httpx.AsyncClient, number: int) -> str:
    """The embeddings of some texts, as base64."""
    rng = random.Random(number)
    texts = [
        [rng.randrange(4, 4096) for _ in range(rng.randrange(1, 60))] for _ in range(number + 1)
    ]
    body = {"model": EMBEDS, "input": texts, "encoding_format": "base64"}
    response = await client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [each["index"] for each in data] == list(range(len(texts)))
    return ",".join(each["embedding"] for each in data)


async def soak(server: LiveServer) -> tuple[Counter[str], list[str], list[int]]:
    """Send for as long as it takes: how many were answered by each model and how many left, what
    was wrong, and the server's memory at each tenth of the time."""
    tally, wrong, memory = Counter[str](), list[str](), list[int]()
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=WAIT_S) as client:
        expected = {
            (model, number): await said(client, model, number, False)
            for model in NAMES
            for number in range(SHAPES)
        }
        until_s = time.monotonic() + SECONDS

        async def one(rng: random.Random) -> None:
            while time.monotonic() < until_s:
                model, number = rng.choice(NAMES), rng.randrange(SHAPES)
                asking = asyncio.create_task(said(client, model, number, rng.random() < 0.6))
                if rng.random() < LEAVE:
                    await asyncio.sleep(rng.expovariate(5.0))
                    if not asking.done():
                        asking.cancel()
                        tally["left"] += 1
                        continue
                if await asking != expected[model, number]:
                    wrong.append(f"{model}, shape {number}")
                tally[model] += 1

        async def watch() -> None:
            process = psutil.Process(server.process.pid)
            while time.monotonic() < until_s:
                memory.append(process.memory_info().rss)
                await asyncio.sleep(SECONDS / 10)

        rng = random.Random(SEED)
        await asyncio.gather(watch(), *(one(random.Random(rng.random())) for _ in range(CLIENTS)))
    return tally, wrong, memory


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for seed, name in enumerate(NAMES):
        directory: Path = tmp_path_factory.mktemp(name)
        found[name] = str(tiny_llama(directory, tokenizer=True, seed=seed))
    found[EMBEDS] = {"model": found[EMBEDS], "task": "embed"}
    return found


@pytest.mark.timeout(2 * SECONDS + 400)
@pytest.mark.parametrize("room", list(ROOM) if LONG_S else ["two fit"])
def test_requests_over_four_models_are_all_answered_and_all_right(
    table: dict[str, Any], tmp_path: Path, room: str
) -> None:
    flags = ("--models", json.dumps(table), "--models-memory-bytes", ROOM[room])
    with LiveServer(None, tmp_path, *flags, *FLAGS, "--no-access-log") as server:
        tally, wrong, memory = asyncio.run(soak(server))
        loads = server.metric("ockham_model_loads_total")
        deaths = server.metric("ockham_engine_restarts_total")
        log = server.log
    print(
        f"{room}: {dict(tally)}, {loads:.0f} loads, memory {memory[0] >> 20} to "
        f"{memory[-1] >> 20} MiB"
    )
    assert not wrong, wrong[:3]
    assert all(tally[name] for name in NAMES), tally
    assert (loads > len(NAMES)) == (room == "two fit")
    assert deaths == 0
    assert "Traceback" not in log
    growth = memory[-1] - memory[len(memory) // 2]
    assert growth < GROWTH_BYTES, [f"{size / 2**20:.1f} MiB" for size in memory]
