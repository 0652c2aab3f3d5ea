"""Tenants over HTTP: a full queue and a busy engine are whose who made them."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ockham.api.server.caller import Caller, key_name
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import LiveServer, wait_for

ADMIN = "admin"


@pytest.fixture(scope="module")
def keyed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two seats, and six places to wait in."""
    keys = ("--api-key", "flood", "--api-key", "other", "--admin-api-key", ADMIN)
    room = ("--max-num-seqs", "2", "--max-queue", "6", "--request-timeout", "20")
    with LiveServer(tiny, tmp_path_factory.mktemp("tenants"), *TINY_FLAGS, *keys, *room) as live:
        yield live


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_another_fills_the_engine_and_the_queue_and_one_is_answered(keyed: LiveServer) -> None:
    long = {"prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": True}

    def ask(key: str, **body: Any) -> int:
        return keyed.post("/v1/completions", body, headers=by(key), timeout=60).status_code

    def waiting() -> float:
        metrics = keyed.get("/metrics", headers=by(ADMIN)).text
        found = re.search(r"^ockham_num_requests_waiting\S* (\S+)$", metrics, re.MULTILINE)
        return float(found[1]) if found else -1.0

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        flood = [pool.submit(ask, "flood", **long) for _ in range(8)]
        wait_for(lambda: waiting() == 6, 10)
        assert ask("flood", prompt="a", max_tokens=1) == 429
        for _ in range(3):
            assert ask("other", prompt="a", max_tokens=1) == 200
            assert not any(request.done() for request in flood), "nobody's work has ended meanwhile"
        assert ask("flood", prompt="a", max_tokens=1) == 429
        assert {request.result() for request in flood} <= {200, 408}


def test_a_priority_is_bounded(server: LiveServer) -> None:
    for priority in (-(2**31), 0, 2**31 - 1, None):
        server.complete(prompt="a", max_tokens=1, priority=priority)
    for priority in (2**31, -(2**31) - 1, "high"):
        answer = server.post("/v1/completions", {"prompt": "a", "priority": priority})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "priority"


def test_a_key_alone_says_whose_turn_it_is() -> None:
    one, other = Caller(key_name("one")), Caller(key_name("other"))
    assert one.tenant(None, None) == one.tenant("salt", "label") != other.tenant(None, None)
    assert one.salt("x") not in (other.salt("x"), one.salt(None), "x")


def test_without_several_keys_the_salt_does_and_then_the_label() -> None:
    nobody = Caller()
    assert nobody.salt(None) == nobody.tenant(None, None) == ""
    assert nobody.tenant("x", "a") == nobody.tenant("x", "b") != nobody.tenant("y", "a")
    assert nobody.tenant(None, "a") not in ("", nobody.tenant(None, "b"), nobody.tenant("a", None))
    assert len(nobody.tenant(None, "u" * 10**6)) == 32
