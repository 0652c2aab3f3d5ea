"""`/v1/cache`: what is held, for whom it is shown, and prefixes that stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from tests.helpers.live import LiveServer

SALT = "a secret of one tenant"


@pytest.fixture(scope="module")
def live(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A pool of 64 pages of 16 tokens, of which half may be pinned."""
    page_bytes = 2 * 2 * 2 * 8 * 4 * 16  # K and V, layers, heads, head_dim, fp32, tokens
    flags = ("--max-model-len", "512", "--kv-cache-memory-bytes", str(64 * page_bytes))
    with LiveServer(tiny, tmp_path_factory.mktemp("cache"), *flags, "--cache-text") as server:
        yield server


def report(live: LiveServer, **body: Any) -> dict[str, Any]:
    answer = live.post("/v1/cache", body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_tree_is_shown_without_the_secrets_of_tenants(live: LiveServer) -> None:
    live.complete(prompt="Everybody may read this prompt.", max_tokens=2)
    live.complete(prompt="Only one tenant may read this prompt.", cache_salt=SALT, max_tokens=2)
    found = report(live)
    texts = {node["tenant"]: node["text"] for node in found["nodes"] if node["parent"] == -1}
    assert texts[""].startswith("Everybody may read")
    (tenant,) = set(texts) - {""}
    assert texts[tenant] is None
    assert SALT not in str(found)
    own = report(live, cache_salt=SALT)
    (text,) = [n["text"] for n in own["nodes"] if n["tenant"] == tenant and n["parent"] == -1]
    assert text.startswith("Only one tenant")
    other = report(live, cache_salt="a wrong guess")
    assert all(node["text"] is None for node in other["nodes"] if node["tenant"])
    for node in found["nodes"]:
        assert node["bytes"] > 0
        assert 0 <= node["idle_s"] <= node["age_s"] < 600
        assert node["readers"] == 0
    assert found["tokens_total"] == sum(node["tokens"] for node in found["nodes"])


def test_uses_are_counted(live: LiveServer) -> None:
    prompt = list(range(40, 80))
    for _ in range(3):
        live.complete(prompt=prompt, max_tokens=1)
    hits = max(node["hits"] for node in report(live)["nodes"])
    assert hits >= 2
    assert len(report(live, most_nodes=1)["nodes"]) == 1


def test_a_pinned_prefix_stays_when_the_pool_is_full(live: LiveServer) -> None:
    prompt = list(range(100, 228))
    answer = live.post("/v1/cache/pin", {"name": "system", "prompt": prompt})
    assert answer.status_code == 200, answer.text
    assert answer.json()["pins"] == [{"name": "system", "tokens": 128, "tenant": ""}]

    def crowd(first: int) -> int:
        """Many long prompts, then how much of the pinned one is still held."""
        for start in range(first, first + 12):
            live.complete(prompt=[start] * 300, max_tokens=1)
        usage = live.complete(prompt=[*prompt, 5, 6], max_tokens=1)["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert crowd(1000) >= 128
    again = live.post("/v1/cache/pin", {"name": "system", "prompt": prompt})
    assert "there is a pin 'system' already" in again.json()["error"]["message"]
    large = live.post("/v1/cache/pin", {"name": "large", "prompt": [7] * 480})
    assert large.status_code == 400
    assert "at most 32 may be" in large.json()["error"]["message"]
    shown = CliRunner().invoke(cli, ["cache", "show", "--url", live.url])
    assert "pinned system: 128 tokens" in shown.output
    assert live.post("/v1/cache/unpin", {"name": "system"}).status_code == 200
    missing = live.post("/v1/cache/unpin", {"name": "system"})
    assert missing.status_code == 404
    assert "there is no pin 'system'" in missing.json()["error"]["message"]
    assert report(live)["pins"] == []
    assert crowd(2000) < 128


def test_pins_that_share_their_beginning_go_one_by_one(live: LiveServer) -> None:
    start = list(range(300, 364))
    for name, tail in (("one", 1), ("two", 2)):
        pinned = live.post("/v1/cache/pin", {"name": name, "prompt": [*start, *[tail] * 16]})
        assert pinned.status_code == 200, pinned.text
    live.post("/v1/cache/unpin", {"name": "one"})
    pinned = [node for node in report(live)["nodes"] if node["pinned"]]
    assert sum(node["tokens"] for node in pinned) == 80
    live.post("/v1/cache/unpin", {"name": "two"})
    assert not any(node["pinned"] for node in report(live)["nodes"])


def test_messages_can_be_pinned(live: LiveServer) -> None:
    system = {"role": "system", "content": "Answer in one word, and be polite. " * 4}
    pinned = live.post("/v1/cache/pin", {"messages": [system]})
    assert pinned.status_code == 200, pinned.text
    answer = pinned.json()
    (pin,) = answer["pins"]
    assert pin["name"] == answer["name"], "one that was not given is told"
    assert not {"type", "ask_id", "error"} & answer.keys()
    body = {"messages": [system, {"role": "user", "content": "Hi"}], "max_tokens": 1}
    usage = live.post("/v1/chat/completions", body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= pin["tokens"] - 1
    live.post("/v1/cache/unpin", {"name": pin["name"]})


def test_hints_are_taken_and_others_refused(live: LiveServer) -> None:
    live.complete(prompt=[9] * 40, max_tokens=1, cache_hint="discard")
    live.complete(prompt=[8] * 40, max_tokens=1, cache_hint="keep")
    hints = {node["hint"] for node in report(live)["nodes"]}
    assert hints >= {"discard", "keep"}
    refused = live.post("/v1/completions", {"prompt": "x", "cache_hint": "always"})
    assert refused.status_code == 400
    assert "cache_hint" in refused.json()["error"]["message"]


def test_show_says_what_is_wrong() -> None:
    shown = CliRunner().invoke(cli, ["cache", "show", "--url", "http://127.0.0.1:9"])
    assert "gives no answer that can be read" in shown.output
