"""Budgets and ends of thoughts over HTTP."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from ockham.core.thoughts import CLOSING
from tests.api.server.test_tools import ASKED, streamed
from tests.helpers.live import LiveServer

THINKS: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def talker(talking: LiveServer) -> openai.OpenAI:
    return talking.openai()


def test_a_budget_ends_the_thought_and_the_answer_goes_on(talker: openai.OpenAI) -> None:
    asked = {**ASKED, "max_tokens": 90, "extra_body": {**THINKS, "thinking_token_budget": 20}}
    whole = talker.chat.completions.create(**asked)
    message, usage = whole.choices[0].message, whole.usage
    thought = (message.model_extra or {})["reasoning_content"]
    assert thought.endswith(CLOSING.strip())
    assert message.content
    assert usage is not None
    assert usage.completion_tokens_details is not None
    spent = usage.completion_tokens_details.reasoning_tokens
    assert spent is not None
    assert 20 < spent < usage.completion_tokens
    made, chunks = streamed(talker, **asked, stream_options={"include_usage": True})
    assert (made["reasoning"], made["content"]) == (thought, message.content)
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == spent


def test_a_token_that_has_no_text_yet_is_counted_in_a_stream(talker: openai.OpenAI) -> None:
    byte = 215  # no character, and none with what comes after it
    budget = {"thinking_token_budget": 10}
    asked = {
        **ASKED,
        "max_tokens": 40,
        "logit_bias": {str(byte): 100},
        "extra_body": {**THINKS, **budget, "return_token_ids": True},
    }
    whole = talker.chat.completions.create(**asked)
    (choice,), usage = whole.choices, whole.usage
    ids = (choice.model_extra or {})["token_ids"]
    assert ids[:13] == [byte] * 13  # a character might have been finished
    assert ids[13] != byte
    assert usage is not None
    assert usage.completion_tokens_details is not None
    spent = usage.completion_tokens_details.reasoning_tokens
    answered = next(n for n, token in enumerate(reversed(ids)) if token != byte)
    assert spent == 40 - answered
    _, chunks = streamed(talker, **asked, stream_options={"include_usage": True})
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == spent


def test_what_closes_a_thought_may_be_chosen(talker: openai.OpenAI) -> None:
    budget = {"thinking_token_budget": 0, "thinking_closing_text": "Enough."}
    asked = {**ASKED, "max_tokens": 20, "extra_body": {**THINKS, **budget}}
    message = talker.chat.completions.create(**asked).choices[0].message
    assert (message.model_extra or {})["reasoning_content"] == "Enough."


def test_a_budget_changes_nothing_where_nothing_is_thought(server: LiveServer) -> None:
    body = {"messages": ASKED["messages"], "max_tokens": 5, "temperature": 0}
    answers = [
        server.post("/v1/chat/completions", {**body, **more}).json()["choices"]
        for more in ({}, {"thinking_token_budget": 1})
    ]
    assert answers[0] == answers[1]


def test_a_stop_in_a_thought_ends_nothing(talker: openai.OpenAI) -> None:
    asked = {**ASKED, "max_tokens": 60, "extra_body": {**THINKS, "thinking_token_budget": 20}}
    free = talker.chat.completions.create(**asked).choices[0].message
    thought = (free.model_extra or {})["reasoning_content"]
    only_there = next(c for c in thought if c.isalnum() and c not in (free.content or ""))
    stopped = talker.chat.completions.create(**asked, stop=[only_there]).choices[0]
    assert stopped.message.content == free.content
    assert stopped.finish_reason == "length"


@pytest.mark.parametrize("in_path", [True, False])
def test_a_thought_ends_on_demand(
    talker: openai.OpenAI, talking: LiveServer, in_path: bool
) -> None:
    more = {**THINKS, "ignore_eos": True, "thinking_closing_text": "Enough."}
    asked = {**ASKED, "max_tokens": 3000, "extra_body": more}
    stream = talker.chat.completions.create(**asked, stream=True)
    first = next(iter(stream))
    path, body = "/v1/chat/completions/control", {"action": "reasoning_end"}
    if in_path:
        path = f"/v1/chat/completions/{first.id}/control"
    else:
        body["id"] = first.id
    assert talking.post(path, body).json()["success"] is True
    assert "is not thinking now" in wait_until_refused(talking, path, body)
    reasoning = content = ""
    for chunk in stream:
        delta = chunk.choices[0].delta
        reasoning += (delta.model_extra or {}).get("reasoning_content", "")
        content += delta.content or ""
        if content:
            break
    stream.close()
    assert reasoning.endswith("Enough.")


def wait_until_refused(server: LiveServer, path: str, body: dict[str, Any]) -> str:
    """What is said once the closing text has been written."""
    for _ in range(1000):
        answer = server.post(path, body)
        if answer.status_code != 200:
            assert answer.status_code == 400, answer.text
            return str(answer.json()["error"]["message"])
    raise AssertionError("the thought never ended")


@pytest.mark.parametrize(
    ("path", "body", "status", "complaint"),
    [
        ("/v1/chat/completions/no/control", {"action": "reasoning_end"}, 404, "'no' being made"),
        ("/v1/chat/completions/control", {"action": "reasoning_end"}, 400, "id is missing"),
        ("/v1/chat/completions/no/control", {"action": "x"}, 400, "action"),
        ("/v1/chat/completions/a/control", {"action": "reasoning_end", "id": "b"}, 400, "leave id"),
    ],
)
def test_what_cannot_be_controlled_is_said(
    talking: LiveServer, path: str, body: dict[str, Any], status: int, complaint: str
) -> None:
    answer = talking.post(path, body)
    assert answer.status_code == status
    assert complaint in answer.json()["error"]["message"]


def test_a_loop_ends_a_completion(server: LiveServer) -> None:
    body = {
        "prompt": "x",
        "max_tokens": 200,
        "temperature": 0,
        "allowed_token_ids": [5, 6],
        "repetition_detection": {"max_pattern_size": 8, "min_count": 4},
    }
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["finish_reason"] == "repetition"
    wrong = {**body, "repetition_detection": {"max_pattern_size": 8, "min_count": 1}}
    answer = server.post("/v1/completions", wrong)
    assert answer.status_code == 400
    assert "min_count must be at least 2" in answer.json()["error"]["message"]
