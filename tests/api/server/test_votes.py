"""Votes over HTTP, whole and as a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.live import LiveServer

PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "one two"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one two"}]},
}
VOTE = {"samples": 4, "extract": "([a-z])", "parallel": 2, "stop": "certain"}


@pytest.mark.parametrize("path", PATHS)
def test_a_vote_tells_what_was_sampled_and_what_was_saved(server: LiveServer, path: str) -> None:
    asked = {**PATHS[path], "temperature": 1, "seed": 4, "max_tokens": 8, "vote": VOTE}
    answer = server.post(path, asked).json()
    (choice,) = answer["choices"]
    report = choice["ockham"]["vote"]
    assert 2 <= report["samples"] <= report["of"] == 4
    assert sum(report["answers"].values()) + report["without_answer"] == report["samples"]
    bill = answer["usage"]["ockham"]
    assert bill["generated_tokens"] >= report["tokens"] >= answer["usage"]["completion_tokens"]
    if report["tokens_spared"]:
        assert bill["saved"]["vote"]["tokens"] == report["tokens_spared"]
    plain = server.post(path, {**asked, "vote": None}).json()
    assert "ockham" not in plain["choices"][0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["vote", "best", "deepconf", "rebase"])
def test_a_search_is_named_by_its_method(server: LiveServer, path: str, method: str) -> None:
    settings = {"extract": "([a-z])", "budget": 40}
    asked = {**PATHS[path], "temperature": 1, "seed": 4, "max_tokens": 8}
    answers = [
        server.post(path, {**asked, **fields}).json()["choices"][0]
        for fields in ({"search": {"method": method, **settings}}, {method: settings})
    ]
    assert answers[0] == answers[1]
    assert answers[0]["ockham"].keys() == {method}


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_brings_the_majoritys_answer_at_once(server: LiveServer, path: str) -> None:
    asked = {**PATHS[path], "temperature": 1, "seed": 4, "max_tokens": 8, "vote": VOTE}
    whole = server.post(path, asked).json()["choices"][0]
    lines = server.post(path, {**asked, "stream": True}).text.splitlines()
    parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for part in parts for choice in part["choices"]]
    said = [c.get("text") or c.get("delta", {}).get("content") or "" for c in choices]
    assert "".join(said) == (whole.get("text") or whole["message"]["content"])
    assert [c["ockham"] for c in choices if "ockham" in c] == [whole["ockham"]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vote": {"samples": 1000}}, "samples must lie in"),
        ({"vote": {"extract": "(?<=a)b"}}, "cannot be used: it has a group that begins with (?"),
        ({"vote": {"sample": 3}}, "sample"),
        ({"vote": True, "temperature": 0}, "needs a temperature above 0"),
    ],
)
def test_what_is_wrong_is_said(
    server: LiveServer, path: str, fields: dict[str, Any], said: str
) -> None:
    answer = server.post(path, {**PATHS[path], "temperature": 1, "max_tokens": 4, **fields})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
