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


ADMIN = "the administrator's own"
PAGE_BYTES = 2 * 2 * 2 * 8 * 4 * 16  # K and V, layers, heads, head_dim, fp32, tokens
FLAGS = ("--max-model-len", "512", "--kv-cache-memory-bytes", str(64 * PAGE_BYTES))
"""A pool of 64 pages of 16 tokens, of which half may be pinned."""


@pytest.fixture(scope="module")
def live(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory = tmp_path_factory.mktemp("cache")
    env = {"OCKHAM_ADMIN_API_KEY": ADMIN}
    with LiveServer(tiny, directory, *FLAGS, "--cache-text", **env) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two tenants by key, and an administrator."""
    keys = ("--api-key", "key-a", "--api-key", "key-b", "--admin-api-key", ADMIN)
    with LiveServer(tiny, tmp_path_factory.mktemp("keyed"), *FLAGS, *keys) as server:
        yield server


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def report(live: LiveServer, key: str = "none", **body: Any) -> dict[str, Any]:
    answer = live.post("/v1/cache", body, headers=by(key))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_each_salt_shows_its_own_and_nothing_else(live: LiveServer) -> None:
    live.complete(prompt="Everybody may read this prompt.", max_tokens=2)
    before = report(live)
    live.complete(prompt="Only one tenant may read this prompt.", cache_salt=SALT, max_tokens=2)
    after = report(live)
    for found in (before, after):  # but for their ages
        for node in found["nodes"]:
            assert node.pop("age_s") >= node.pop("idle_s") >= 0
    assert after == before, "the sums and the numbers of nodes tell nothing of another tenant"
    assert {node["tenant"] for node in after["nodes"]} == {""}
    assert any(str(node["text"]).startswith("Everybody may") for node in after["nodes"])
    own = report(live, cache_salt=SALT)
    assert [n["text"][:15] for n in own["nodes"] if n["parent"] == -1] == ["Only one tenant"]
    assert own["nodes"][0]["number"] == 0
    other = report(live, cache_salt="a wrong guess")
    assert (other["nodes"], other["nodes_total"], other["tokens_total"]) == ([], 0, 0)
    assert other["bytes_total"] == 0
    for node in (*after["nodes"], *own["nodes"]):
        assert node["bytes"] > 0
        assert node["readers"] == 0
    assert after["tokens_total"] == sum(node["tokens"] for node in after["nodes"])


def test_the_administrator_sees_all_and_no_salt(live: LiveServer) -> None:
    live.complete(prompt="One that only a tenant may read.", cache_salt=SALT, max_tokens=2)
    found = report(live, ADMIN)
    assert SALT not in str(found)
    assert len({node["tenant"] for node in found["nodes"]}) >= 2
    assert all(node["text"] is not None for node in found["nodes"])
    assert found["nodes_total"] > report(live)["nodes_total"]
    shown = CliRunner().invoke(cli, ["cache", "show", "--url", live.url, "--api-key", ADMIN])
    assert ", tenant " in shown.output


def test_another_tenants_pin_is_as_one_that_is_not_there(live: LiveServer) -> None:
    body = {"name": "mine", "prompt": list(range(400, 432)), "cache_salt": SALT}
    assert live.post("/v1/cache/pin", body).status_code == 200
    try:
        for asked in ({}, {"cache_salt": "a wrong guess"}):
            taken = live.post("/v1/cache/unpin", {"name": "mine", **asked})
            absent = live.post("/v1/cache/unpin", {"name": "none", **asked})
            assert taken.status_code == absent.status_code == 404
            assert taken.text.replace("mine", "none") == absent.text
        assert report(live)["pins"] == []
        # Its name is free for others, and belongs to each by itself.
        other = live.post("/v1/cache/pin", {"name": "mine", "prompt": list(range(32))})
        assert other.status_code == 200, other.text
        assert [pin["tenant"] for pin in other.json()["pins"]] == [""]
        assert live.post("/v1/cache/unpin", {"name": "mine"}).status_code == 200
        assert [pin["name"] for pin in report(live, cache_salt=SALT)["pins"]] == ["mine"]
    finally:
        gone = live.post("/v1/cache/unpin", {"name": "mine", "cache_salt": SALT})
    assert gone.status_code == 200
    assert gone.json()["pins"] == []


def test_the_administrator_unpins_anybodys(live: LiveServer) -> None:
    for salt in ("one", "two"):
        body = {"name": "both", "prompt": list(range(32)), "cache_salt": salt}
        assert live.post("/v1/cache/pin", body).status_code == 200
    tenants = [pin["tenant"] for pin in report(live, ADMIN)["pins"]]
    vague = live.post("/v1/cache/unpin", {"name": "both"}, headers=by(ADMIN))
    assert vague.status_code == 400
    assert vague.json()["error"]["param"] == "tenant"
    forbidden = live.post("/v1/cache/unpin", {"name": "both", "tenant": tenants[0]})
    assert forbidden.status_code == 403
    for tenant in tenants:
        body = {"name": "both", "tenant": tenant}
        assert live.post("/v1/cache/unpin", body, headers=by(ADMIN)).status_code == 200
    assert report(live, ADMIN)["pins"] == []


def test_keys_share_no_state_and_see_none(keyed: LiveServer) -> None:
    def cached(key: str, **more: Any) -> int:
        body = {"prompt": list(range(200, 280)), "max_tokens": 1, **more}
        answer = keyed.post("/v1/completions", body, headers=by(key))
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("key-a") == 0
    assert cached("key-b") == 0, "what another key sent is not found"
    assert cached("key-a") > 0
    assert cached("key-b", cache_salt="x") == 0
    assert cached("key-a", cache_salt="x") == 0, "not even under the same salt"
    for key in ("key-a", "key-b"):
        found = report(keyed, key)
        assert len({node["tenant"] for node in found["nodes"]}) == 1
        assert all(node["text"] is None for node in found["nodes"]), "without --cache-text"
        assert key not in str(found)
    assert len({node["tenant"] for node in report(keyed, ADMIN)["nodes"]}) == 4
    assert report(keyed, ADMIN, cache_salt="x")["nodes"] == []


def test_keys_have_pins_of_their_own(keyed: LiveServer) -> None:
    body = {"name": "system", "prompt": list(range(300, 364))}
    for key in ("key-a", "key-b"):
        assert keyed.post("/v1/cache/pin", body, headers=by(key)).status_code == 200
    large = {"name": "large", "prompt": [7] * 120}
    refused = keyed.post("/v1/cache/pin", large, headers=by("key-a"))
    assert refused.status_code == 400
    # A third of 32 pages each: what the others have pinned changes nothing.
    assert "your other pins 5; at most 10 may be" in refused.json()["error"]["message"]
    name = {"name": "system"}
    assert keyed.post("/v1/cache/unpin", name, headers=by("key-a")).status_code == 200
    again = keyed.post("/v1/cache/unpin", name, headers=by("key-a"))
    assert again.status_code == 404
    assert len(report(keyed, "key-b")["pins"]) == 1
    assert keyed.post("/v1/cache/unpin", name, headers=by(ADMIN)).status_code == 200


def test_what_cannot_be_pinned_is_not_computed(keyed: LiveServer) -> None:
    before = report(keyed, ADMIN)["tokens_total"]
    body = {"name": "large", "prompt": [9] * 400}
    assert keyed.post("/v1/cache/pin", body, headers=by("key-b")).status_code == 400
    assert report(keyed, ADMIN)["tokens_total"] == before


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
