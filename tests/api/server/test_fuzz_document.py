"""Requests of the OpenAPI document's making, and requests that it forbids: no fault, no hang.

`make fuzz` runs this for 20 minutes.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.helpers.live import LiveServer, wait_for

FUZZ_S = float(os.environ.get("OCKHAM_FUZZ_S", "60"))
EXAMPLES = 4
"""Requests of a kind in a row; a failure is then made as small as possible."""
ANSWER_S = 60.0
HEALTH_S = 10.0
GROWTH_BYTES = 96 << 20
"""What the two processes may gain once they have seen every route: caches have bounds, and fill."""
NOT_SUPPORTED = 501
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
FLAGS = (
    *("--kv-cache-memory-bytes", "16M", "--max-model-len", "256", "--no-access-log"),
    *("--idle-timeout", "600"),  # what makes the requests may think for long
    "--enable-lora",
)


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose longest answer does not take long."""
    directory = tmp_path_factory.mktemp("fuzz")
    flags = (*FLAGS, "--served-model-name", "tiny", "--batch-dir", str(directory / "batches"))
    with LiveServer(tiny, directory, *flags) as live:
        yield live


@pytest.mark.timeout(FUZZ_S + 180)
def test_no_request_is_a_fault(small: LiveServer) -> None:
    """Nothing that is sent to any route gets a 500, or another answer than the document says; the
    server stays quick and well, and its memory flat."""
    drawn = random.Random(int(os.environ.get("OCKHAM_FUZZ_SEED", time.time())))
    start = drawn.getrandbits(32)
    print(f"OCKHAM_FUZZ_SEED={start}")
    schema = schemathesis.openapi.from_dict(small.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    positive, negative = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    kinds = [(each, positive) for each in operations]
    kinds += [(each, mode) for each in operations if each.body for mode in (positive, negative)]
    statuses: Counter[int] = Counter()
    begun_s, rounds = time.monotonic(), 0
    memory_bytes: int | None = None
    session = requests.Session()

    def send(case: Case) -> None:
        response = case.call(base_url=small.url, session=session, timeout=ANSWER_S)
        statuses[response.status_code] += 1
        if response.status_code != NOT_SUPPORTED:
            case.validate_response(response, checks=[not_a_server_error])
        case.validate_response(response, checks=CHECKS)

    with _health_watched(small) as slowest_s:
        while time.monotonic() - begun_s < FUZZ_S:
            random.Random(start + rounds).shuffle(kinds)
            for number, (operation, mode) in enumerate(kinds):
                _try(operation.as_strategy(mode), send, start + 1000 * rounds + number)
                if time.monotonic() - begun_s > FUZZ_S:
                    break
            else:
                rounds += 1
                memory_bytes = memory_bytes or _memory_bytes(small)
    # Pages may stay in use: prefixes have been pinned.
    names = ("ockham_num_requests_running", "ockham_num_requests_waiting")
    wait_for(lambda: not any(small.metric(name) for name in names), 15.0)
    assert small.get("/health").status_code == 200
    assert "Traceback" not in small.log
    assert slowest_s[0] < HEALTH_S
    print(f"{rounds} rounds of {len(kinds)} kinds, answers {dict(statuses)}")
    assert statuses.total() > 0
    if memory_bytes is not None:
        assert _memory_bytes(small) - memory_bytes < GROWTH_BYTES


def _try(cases: Any, send: Callable[[Case], None], number: int) -> None:
    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def run(case: Case) -> None:
        send(case)

    run()


@contextmanager
def _health_watched(live: LiveServer) -> Iterator[list[float]]:
    """Ask after the server's health all the while; the longest that an answer took, in seconds."""
    slowest_s, done = [0.0], threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=live.url, timeout=2 * HEALTH_S) as client:
            while not done.wait(0.5):
                begin_s = time.monotonic()
                assert client.get("/health").status_code == 200
                slowest_s[0] = max(slowest_s[0], time.monotonic() - begin_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield slowest_s
    finally:
        done.set()
        watcher.join()


def _memory_bytes(live: LiveServer) -> int:
    processes = (psutil.Process(live.process.pid), live.engine)
    return sum(process.memory_info().rss for process in processes)
