"""Anthropic's API, as its clients see it.

What the tiny model says is forced by a grammar where it matters: what is tested is what the server
makes of it. `tests/clients` runs Anthropic's own client.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.api.server.test_tools import CALL, THOUGHT
from tests.helpers.claude_code import Session
from tests.helpers.live import LiveServer

USER: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "temperature": 0, "messages": USER}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["city", "days"],
    },
}
CLOCK = {"name": "clock", "input_schema": {"type": "object"}}
EPHEMERAL = {"type": "ephemeral"}


def saying(*texts: str) -> dict[str, Any]:
    return {"structured_outputs": {"choice": list(texts)}}


def whole(live: LiveServer, **body: Any) -> dict[str, Any]:
    response = live.post("/v1/messages?beta=true", {**ASKED, **body})
    assert response.status_code == 200, response.text
    return dict(response.json())


def events(live: LiveServer, **body: Any) -> list[dict[str, Any]]:
    response = live.post("/v1/messages", {**ASKED, **body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def assembled(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a reader of a stream makes of it."""
    assert [found[0]["type"], found[-1]["type"]] == ["message_start", "message_stop"]
    message: dict[str, Any] = found[0]["message"]
    assert message["content"] == []
    pieces = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    arguments, is_open = "", False
    for event in found[1:-1]:
        if event["type"] == "content_block_start":
            assert not is_open
            is_open, arguments = True, ""
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                arguments += delta["partial_json"]
            else:
                block[pieces[delta["type"]]] += delta[pieces[delta["type"]]]
        elif event["type"] == "content_block_stop":
            is_open = False
            if arguments:
                message["content"][-1]["input"] = json.loads(arguments)
        else:
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert not is_open
    return message


def refused(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"]
    return str(body["error"]["message"])


def same(message: dict[str, Any]) -> dict[str, Any]:
    """What of an answer does not change when it is asked for again."""
    content = [{**block, "id": None} for block in message["content"]]
    kept = ("type", "role", "model", "stop_reason", "stop_sequence")
    return {name: message[name] for name in kept} | {"content": content}


def test_thoughts_text_and_calls_are_blocks_whole_and_streamed(talking: LiveServer) -> None:
    asked = {**saying(THOUGHT + "Let me see.\n" + CALL), "tools": [WEATHER]}
    answer = whole(talking, **asked)
    thought, said, call = answer["content"]
    assert thought == {"type": "thinking", "thinking": "so it is", "signature": "ockham"}
    assert said == {"type": "text", "text": "Let me see.", "citations": None}
    assert (call["type"], call["name"]) == ("tool_use", "get_weather")
    assert call["input"] == {"city": "Rome", "days": 3}
    assert answer["stop_reason"] == "tool_use"
    assert answer["id"].startswith("msg_")
    made = assembled(events(talking, **asked))
    assert same(made) == same(answer)
    assert made["usage"]["output_tokens"] == answer["usage"]["output_tokens"]
    assert 0 < made["usage"]["output_tokens_details"]["thinking_tokens"] < 20
    hidden = {**asked, "thinking": {"type": "adaptive", "display": "omitted"}}
    hidden["structured_outputs"] = {"choice": ["<think>\nso it is\n</think>\n\nYes."]}
    assert whole(talking, **hidden)["content"][0]["thinking"] == ""
    assert assembled(events(talking, **hidden))["content"][0]["thinking"] == ""


def test_sampled_answers_are_those_of_chat_completions(talking: LiveServer) -> None:
    asked = {"temperature": 1, "seed": 7, "max_tokens": 12, "top_k": 50}
    answer, made = whole(talking, **asked), assembled(events(talking, **asked))
    assert same(made) == same(answer)
    chat = {"model": "tiny", "messages": USER, **asked}
    choice = talking.post("/v1/chat/completions", chat).json()["choices"][0]
    assert [block["text"] for block in answer["content"]] == [choice["message"]["content"]]
    assert answer["stop_reason"] == "max_tokens"


SHAPES: list[dict[str, Any]] = [
    {},
    {"system": "Be brief."},
    {"system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "And kind."}]},
    {"tools": [WEATHER, CLOCK]},
    {"tools": [WEATHER], "tool_choice": {"type": "none"}},
    {"tools": [WEATHER], "tool_choice": {"type": "any"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
    {"messages": [*USER, {"role": "assistant", "content": "I say"}]},
    {
        "tools": [WEATHER],
        "messages": [
            *USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "zzz"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"days": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                    {"type": "text", "text": "and then? \N{SNOWMAN}"},
                ],
            },
            {"role": "system", "content": "The user is in a hurry."},
        ],
    },
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_count_is_the_prompt_of_the_same_request(talking: LiveServer, shape: int) -> None:
    body = {**ASKED, **SHAPES[shape]}
    counted = talking.post("/v1/messages/count_tokens", body).json()
    usage = whole(talking, **SHAPES[shape], max_tokens=2)["usage"]
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert counted == {"input_tokens": sum(usage[part] for part in parts)}
    assert counted["input_tokens"] > 5


def test_an_answer_goes_on_from_the_last_message(talking: LiveServer) -> None:
    begun = [*USER, {"role": "assistant", "content": "I say"}]
    answer = whole(talking, messages=begun, **saying(" yes. zz no"), stop_sequences=["q", "zz"])
    assert answer["content"] == [{"type": "text", "text": " yes. ", "citations": None}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "zz")


def test_tools_are_called_as_the_choice_says(talking: LiveServer) -> None:
    asked = {"tools": [WEATHER, CLOCK], "temperature": 1, "seed": 1}
    answer = whole(talking, **asked, tool_choice={"type": "tool", "name": "get_weather"})
    [call] = answer["content"]
    assert call["name"] == "get_weather"
    assert call["input"]["city"] in ("Paris", "Rome")
    one = {"type": "any", "disable_parallel_tool_use": True}
    content = whole(talking, **asked, tool_choice=one)["content"]
    assert [block["type"] for block in content] == ["tool_use"]
    twice = {**saying(CALL + "\n" + CALL), "tools": [WEATHER]}
    assert len(whole(talking, **twice)["content"]) == 2
    auto = {"type": "auto", "disable_parallel_tool_use": True}
    made = assembled(events(talking, **twice, tool_choice=auto))
    assert len(made["content"]) == 1
    assert "disable_parallel" not in made["stop_reason"]


def test_a_call_that_breaks_is_text(talking: LiveServer) -> None:
    broken = '<tool_call>\n{"name": "clock", "arguments": [1]}\n</tool_call>'
    asked = {**saying(broken), "tools": [CLOCK]}
    answer = whole(talking, **asked)
    assert answer["stop_reason"] == "end_turn"
    assert [block["type"] for block in answer["content"]] == ["text"]
    found = events(talking, **asked)
    assert found[-2]["delta"]["stop_reason"] == "end_turn"


def test_schemas_bind_the_answer(server: LiveServer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    for field in ({"output_config": config}, {"output_format": config["format"]}):
        content = whole(server, **field)["content"]
        assert json.loads(content[-1]["text"]) == {"a": 1}
    both = {**ASKED, **saying("x"), "output_config": config}
    said = refused(server.post("/v1/messages", both), 400, "invalid_request_error")
    assert said.startswith("output_config.format and structured_outputs")


def test_a_thought_ends_with_its_budget(talking: LiveServer) -> None:
    def thought(budget: int) -> tuple[str, int]:
        thinking = {"type": "enabled", "budget_tokens": budget}
        answer = whole(talking, thinking=thinking, max_tokens=90, temperature=1, seed=3)
        said = [block["text"] for block in answer["content"] if block["type"] == "text"]
        return "".join(said), answer["usage"]["output_tokens_details"]["thinking_tokens"]

    said, tokens = thought(5)
    assert said
    assert tokens < 40  # with the closing text
    assert thought(50)[1] >= 50


def test_what_the_servers_of_anthropic_do_is_skipped_and_told(talking: LiveServer) -> None:
    body = {
        **ASKED,
        **saying("Yes."),
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, CLOCK],
        "messages": [
            *USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                    {"type": "text", "text": "It is so."},
                ],
            },
            *USER,
        ],
        "container": "c",
    }
    response = talking.post("/v1/messages", body)
    assert response.status_code == 200, response.text
    told = response.headers["x-ockham-ignored-fields"]
    warnings = " ".join(response.json()["warnings"])
    for what in ("tools[0] ('web_search_20250305')", "messages[1].content[0] ('server_tool_use')"):
        assert what in told
        assert what in warnings
    assert "container" in told


def test_errors_have_the_shape_of_the_protocol(talking: LiveServer) -> None:
    def sent(status: int, kind: str, **body: Any) -> str:
        return refused(talking.post("/v1/messages", {**ASKED, **body}), status, kind)

    bad = "invalid_request_error"
    assert "no model 'nope'" in sent(404, "not_found_error", model="nope")
    assert sent(400, bad, stop_sequences=[""]).startswith("stop_sequences")
    assert sent(400, bad, messages=[]) == "messages must not be empty."
    assert "needs tools" in sent(400, bad, tool_choice={"type": "any"})
    assert "does not go with stream" in sent(400, bad, max_tokens=0, stream=True)
    assert "keeps no conversations" in sent(400, bad, thread={"type": "create"})
    long = [{"role": "user", "content": "x y z, " * 5000}]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
        content = [{"role": "user", "content": [image]}]
        answer = talking.post(path, {**ASKED, "messages": content})
        assert "reads text only" in refused(answer, 400, bad)
    assert sent(400, bad, messages=long).startswith("prompt is too long: ")
    assert "must be at least 1" in sent(400, bad, thinking={"type": "enabled", "budget_tokens": 0})
    assert "input_schema is required" in sent(400, bad, tools=[{"name": "a"}])
    assert "GET" in refused(talking.get("/v1/messages"), 405, bad)
    document = {"type": "document", "source": {"type": "base64", "data": "JVBE"}}
    said = sent(400, bad, messages=[{"role": "user", "content": [document]}])
    assert "only documents of text" in said
    details = talking.post("/v1/messages", {**ASKED, "thread": {}}).json()["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request"}


def test_answers_end_where_the_context_does(talking: LiveServer) -> None:
    """Agents ask for more tokens than small models have room for."""
    long = [{"role": "user", "content": "word " * 8100}]
    counted = talking.post("/v1/messages/count_tokens", {**ASKED, "messages": long}).json()
    room = 8192 - counted["input_tokens"]
    assert 0 < room < 200
    answer = whole(talking, messages=long, max_tokens=32_000, ignored=1, **saying("a" * 5000))
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["output_tokens"] == room


def test_what_is_marked_is_kept_and_told_of(talking: LiveServer) -> None:
    system = [{"type": "text", "text": "Keep to the point. " * 40, "cache_control": EPHEMERAL}]
    asked = {"system": system, "cache_salt": "kept"}
    first = whole(talking, **asked, max_tokens=0)
    assert (first["content"], first["usage"]["output_tokens"]) == ([], 0)
    created = first["usage"]["cache_creation_input_tokens"]
    assert created > 100
    assert first["usage"]["cache_creation"]["ephemeral_5m_input_tokens"] == created
    other = [{"role": "user", "content": "something else"}]
    made = events(talking, **asked, messages=other, max_tokens=3)
    begun, ended = made[0]["message"]["usage"], made[-2]["usage"]
    assert begun["cache_read_input_tokens"] == ended["cache_read_input_tokens"] >= created
    assert begun["cache_creation_input_tokens"] == ended["cache_creation_input_tokens"] == 0
    pins = talking.post("/v1/cache", {"cache_salt": "kept"}).json()["pins"]
    assert [pin["tokens"] for pin in pins] == [created]
    marked = [{"role": "user", "content": [{**system[0], "text": "new " * 50}]}]
    usage = whole(talking, messages=marked, max_tokens=1, cache_salt="kept")["usage"]
    assert usage["input_tokens"] == 0
    assert usage["cache_creation_input_tokens"] > 50


def test_a_request_may_see_its_own_course(talking: LiveServer) -> None:
    plain = events(talking, messages=USER, max_tokens=2)
    assert not [event for event in plain if event["type"] == "ping"]
    assert "ockham" not in plain[-2]
    seen = events(talking, max_tokens=2, return_progress=True, return_ledger=True)
    [ping, *_] = [event for event in seen if event["type"] == "ping"]
    assert ping["prompt_progress"]["processed"] == ping["prompt_progress"]["total"]
    assert seen[-2]["ockham"]["ledger"]["generated_tokens"] == 2


def test_an_agents_turns_compute_what_is_new_only(talking: LiveServer) -> None:
    """Ten turns in the shape of Claude Code: each reads 95% of its prompt or more from the cache,
    although its header and its countdown change every time."""

    def post(body: dict[str, Any]) -> dict[str, Any]:
        response = talking.post("/v1/messages?beta=true", {**body, "cache_salt": "agent"})
        assert response.status_code == 200, response.text
        return dict(response.json())

    session = Session(post, "tiny", 40)
    session.begin("Find the bug.")
    call = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "a.py"}}\n</tool_call>'
    shares = []
    for turn in range(10):
        said = f"{THOUGHT}Step {turn}.\n{call}"
        answer = session.ask(**saying(said), temperature=0)
        assert answer["stop_reason"] == "tool_use"
        usage = answer["usage"]
        prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"]
        prompt += usage["cache_read_input_tokens"]
        assert prompt > 3000
        shares.append(usage["cache_read_input_tokens"] / prompt)
        session.results(answer, f"def f{turn}():\n    return {turn}\n")
    assert min(shares[1:]) >= 0.95, shares
