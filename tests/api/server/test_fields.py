"""Which fields a body may hold: null is nothing, neutral values do nothing, the rest is refused or
passed over as the operator said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ockham.api.server.cache import CacheRequest, PinRequest
from ockham.api.server.errors import decode
from ockham.api.server.fields import ANY, NEUTRAL, NEUTRAL_IN_MESSAGES
from ockham.api.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from ockham.api.server.synonyms import SYNONYMS
from ockham.core.errors import InvalidRequest
from tests.api.server.conftest import TINY_FLAGS
from tests.helpers.live import ROOT, LiveServer

SAID = {"role": "user", "content": "Hi"}
CHAT = {"messages": [SAID], "temperature": 0, "max_tokens": 3}
TEXT = {"prompt": "Hi", "temperature": 0, "max_tokens": 3}
PATHS = {"/v1/chat/completions": (CHAT, ChatRequest), "/v1/completions": (TEXT, CompletionRequest)}
IN_MESSAGES = [
    (name, "I think" if value is ANY else value)
    for name, values in NEUTRAL_IN_MESSAGES.items()
    for value in values
]


def texts(server: LiveServer, path: str, body: dict[str, Any]) -> list[str]:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return [c.get("text", c.get("message")) for c in response.json()["choices"]]


@pytest.mark.parametrize("path", PATHS)
def test_null_is_the_same_as_leaving_any_field_out(server, path):
    body, kind = PATHS[path]
    names = {*kind.__struct_fields__, *NEUTRAL, "nobody_knows_this", "guided_json"} - set(body)
    assert texts(server, path, {**body, **dict.fromkeys(names)}) == texts(server, path, body)


def test_null_is_nothing_inside_messages_and_objects_too(server):
    message = {**SAID, "name": None, "tool_calls": None, "anything": None, "audio": None}
    body = {
        **CHAT,
        "messages": [message],
        "response_format": {"type": "text", "json_schema": None, "x": None},
        "structured_outputs": None,
        "stream_options": None,
    }
    path = "/v1/chat/completions"
    assert texts(server, path, body) == texts(server, path, CHAT)


def test_null_is_nothing_in_the_other_bodies(server):
    for path, body, kind in (
        ("/tokenize", {"prompt": "a"}, TokenizeRequest),
        ("/detokenize", {"tokens": [5]}, DetokenizeRequest),
        ("/v1/cache", {}, CacheRequest),
        ("/v1/cache/pin", {"prompt": "a", "name": "null"}, PinRequest),
    ):
        names = {*kind.__struct_fields__, "other"} - set(body)
        assert server.post(path, {**body, **dict.fromkeys(names)}).status_code == 200, path
    assert server.post("/v1/cache/unpin", {"name": "null", "x": None}).status_code == 200


def test_a_required_field_that_is_null_is_missing(server):
    error = server.post("/v1/completions", {"prompt": None}).json()["error"]
    assert (error["param"], error["message"]) == ("prompt", "prompt is required and is missing.")


def test_nulls_of_a_schema_mean_what_they_say(server):
    schema = {"enum": [None]}
    body = {**CHAT, "max_tokens": 20, "structured_outputs": {"json": schema}}
    (message,) = texts(server, "/v1/chat/completions", body)
    assert message["content"].strip() == "null"


@pytest.mark.parametrize("path", PATHS)
def test_every_neutral_value_is_accepted_and_changes_nothing(server, path):
    body, kind = PATHS[path]
    expected = texts(server, path, body)
    for name, values in NEUTRAL.items():
        for value in (5 if each is ANY else each for each in values):
            if name not in kind.__struct_fields__:
                assert texts(server, path, {**body, name: value}) == expected, name


@pytest.mark.parametrize("path", PATHS)
def test_other_values_of_those_fields_are_refused_by_name(server, path):
    body, kind = PATHS[path]
    for name in NEUTRAL.keys() - set(kind.__struct_fields__) - SYNONYMS.keys():
        if ANY in NEUTRAL[name]:
            continue
        response = server.post(path, {**body, name: "something else"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name


@pytest.mark.parametrize(("name", "value"), IN_MESSAGES)
def test_a_conversation_begun_elsewhere_goes_on(server, name, value):
    path = "/v1/chat/completions"
    turns = [SAID, {"role": "assistant", "content": "Hello."}, SAID]
    expected = texts(server, path, {**CHAT, "messages": turns})
    turns[1] = {**turns[1], name: value}
    assert texts(server, path, {**CHAT, "messages": turns}) == expected


@pytest.mark.parametrize("field", [{"audio": {"id": "x"}}, {"refusal": "no"}, {"colour": 1}])
def test_what_a_message_may_not_hold_is_refused_by_its_place(server, field):
    response = server.post("/v1/chat/completions", {**CHAT, "messages": [SAID, {**SAID, **field}]})
    assert response.json()["error"]["param"] == f"messages[1].{next(iter(field))}"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": 0},
        {"top_logprobs": 0},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"best_of": 1},
        {"n": 2, "best_of": 2, "temperature": 1},
        {"service_tier": "auto"},
    ],
)
def test_what_asks_for_nothing_is_accepted(server, fields):
    assert server.post("/v1/chat/completions", {**CHAT, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        ("chat", {"response_format": {"type": "json"}}, "response_format.type", "'json_object' or"),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must"),
        ("chat", {"cache_hint": "x"}, "cache_hint", "'discard' or 'keep'"),
        ("text", {"logit_bias": {"abc": 1}}, "logit_bias", "has the key 'abc'"),
        ("text", {"prompt": ["a", "", "b"]}, "prompt", "prompt[1]: "),
        ("text", {"prompt": [[5], [6], []]}, "prompt", "prompt[2]: "),
        ("text", {"prompt": [[5], [99999]]}, "prompt", "prompt[1]: "),
        ("text", {"prompt": [[5], [6] * 9000]}, "prompt", "prompt[1]: "),
        ("text", {"prompt": [[5], [6] * 8000], "max_tokens": 500}, "max_tokens", "prompt[1]: "),
        ("chat", {"max_tokens": None, "max_completion_tokens": 9000}, "max_completion_tokens", ""),
    ],
)
def test_a_message_names_the_right_field(server, path, fields, param, said):
    url, base = ("/v1/chat/completions", CHAT) if path == "chat" else ("/v1/completions", TEXT)
    error = server.post(url, {**base, **fields}).json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert "`" not in error["message"]


def test_the_routes_are_there_without_v1_too(server):
    for path, (body, _) in PATHS.items():
        assert texts(server, path.removeprefix("/v1"), body) == texts(server, path, body)
    assert server.get("/models/tiny").json() == server.get("/v1/models/tiny").json()


# -- Names of other servers -----------------------------------------------------------------------

THINK = {"chat_template_kwargs": {"enable_thinking": True}}
SAME: list[tuple[str, Any, dict[str, Any]]] = [
    ("repeat_penalty", 1.3, {"repetition_penalty": 1.3}),
    ("n_predict", 7, {"max_tokens": 7}),
    ("num_predict", 7, {"max_tokens": 7}),
    ("num_predict", -1, {}),
    ("max_new_tokens", 7, {"max_tokens": 7}),
    ("do_sample", False, {"temperature": 0}),
    ("do_sample", True, {}),
    ("grammar", "", {}),
    ("grammar", "root ::= [0-9]", {"structured_outputs": {"grammar": "root ::= [0-9]"}}),
    ("ebnf", "root ::= [0-9]", {"structured_outputs": {"grammar": "root ::= [0-9]"}}),
    ("json_schema", {"type": "null"}, {"structured_outputs": {"json": {"type": "null"}}}),
    ("guided_json", {"type": "null"}, {"structured_outputs": {"json": {"type": "null"}}}),
    ("guided_regex", "[0-9]", {"structured_outputs": {"regex": "[0-9]"}}),
    ("guided_choice", ["a"], {"structured_outputs": {"choice": ["a"]}}),
    ("guided_grammar", "start: /[0-9]/", {"structured_outputs": {"grammar": "start: /[0-9]/"}}),
    ("regex", "[0-9]", {"structured_outputs": {"regex": "[0-9]"}}),
    ("think", True, THINK),
    ("think", "low", {"reasoning_effort": "low"}),
    ("enable_thinking", True, THINK),
    ("thinking", {"type": "enabled"}, THINK),
    ("thinking", {"type": "disabled"}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ("reasoning", {"enabled": True}, THINK),
    ("reasoning", {"effort": "high"}, {"reasoning_effort": "high"}),
    ("reasoning", {"exclude": True}, {"include_reasoning": False}),
]


@pytest.mark.parametrize(("name", "value", "meant"), SAME)
def test_a_name_of_another_server_is_the_field_that_it_means(name, value, meant):
    plain = {"messages": [SAID]}
    found = decode(json.dumps({**plain, name: value}).encode(), ChatRequest)
    assert found == decode(json.dumps({**plain, **meant}).encode(), ChatRequest)


def test_synonyms_work_through_the_server_and_are_checked_as_what_they_mean(server):
    path = "/v1/completions"
    expected = texts(server, path, {**TEXT, "structured_outputs": {"choice": ["yes"]}})
    assert texts(server, path, {**TEXT, "guided_choice": ["yes"]}) == expected == ["yes"]
    error = server.post(path, {**TEXT, "repeat_penalty": -1}).json()["error"]
    assert error["param"] == "repetition_penalty"
    off = {**TEXT, "repeat_penalty": 1.9, "repeat_last_n": 0}
    assert texts(server, path, off) == texts(server, path, TEXT)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 3, "n_predict": 4}, "n_predict"),
        ({"think": True, "chat_template_kwargs": {"enable_thinking": False}}, "think"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"thinking": {"type": "enabled", "budget": 5}}, "thinking"),
        ({"reasoning": "high"}, "reasoning"),
    ],
)
def test_synonyms_that_contradict_or_say_more_are_refused(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        decode(json.dumps({"messages": [SAID], **fields}).encode(), ChatRequest)
    assert refused.value.param == param


def test_a_text_has_no_thoughts_to_speak_of(server):
    error = server.post("/v1/completions", {**TEXT, "enable_thinking": True}).json()["error"]
    assert error["param"] == "enable_thinking"


def test_a_client_that_was_told_of_no_model_has_the_servers(server):
    for name in ("", "dummy"):
        response = server.post("/v1/chat/completions", {**CHAT, "model": name})
        assert response.json()["model"] == "tiny"


# -- --unknown-fields -----------------------------------------------------------------------------

STRANGE = {"typical": 0.5, "thinking": {"x": 1}, "truncation": "auto", "mirostat": 2}


@pytest.fixture(scope="module", params=["warn", "ignore"])
def lenient(request, tiny, tmp_path_factory) -> Iterator[tuple[LiveServer, str]]:
    directory = tmp_path_factory.mktemp("lenient")
    flags = (*TINY_FLAGS, "--unknown-fields", request.param)
    with LiveServer(tiny, directory, *flags) as live:
        yield live, request.param


def test_unknown_fields_are_refused_by_default(server):
    for name, value in STRANGE.items():
        assert server.post("/v1/chat/completions", {**CHAT, name: value}).status_code == 400


def test_unknown_fields_are_passed_over_where_the_operator_said_so(lenient):
    live, mode = lenient
    message = {**SAID, "cache_control": {"type": "ephemeral"}}
    body = {**CHAT, **STRANGE, "messages": [message], "a\r\nb: é": 1}
    headers = {"X-Request-Id": "strange"}
    response = live.post("/v1/chat/completions", body, headers=headers)
    assert response.status_code == 200
    plain = live.post("/v1/chat/completions", CHAT)
    assert response.json()["choices"] == plain.json()["choices"]
    assert "x-ockham-ignored-fields" not in plain.headers
    (line,) = [line for line in live.log.splitlines() if "strange" in line]
    told = response.headers.get("x-ockham-ignored-fields", "")
    for name in (*STRANGE, "messages[0].cache_control", r"a\r\nb"):
        assert (name in told) == (name in line) == (mode == "warn")


def test_what_is_known_is_checked_all_the_same(lenient):
    live, _ = lenient
    for fields in ({"temperature": -1}, {"n": 10**400}, {"best_of": 3}, {"messages": []}):
        assert live.post("/v1/chat/completions", {**CHAT, **fields}).status_code == 400


def test_the_page_of_the_api_lists_every_neutral_field():
    page = (ROOT / "docs" / "api.md").read_text()
    for name, values in {**NEUTRAL, **NEUTRAL_IN_MESSAGES, **dict.fromkeys(SYNONYMS, ())}.items():
        assert re.search(rf"`{name}\b", page)
        for value in values:
            assert value is ANY or f"`{json.dumps(value)}`" in page


@pytest.mark.parametrize("name", ["", " ", " a", "a\t", "\u0000", "\ud7ff é", "x" * 2000, ", "])
def test_whatever_a_field_is_called_the_header_can_name_it(server: LiveServer, name: str) -> None:
    response = server.post("/api/show", {"model": "tiny", "b": 1, name: 1})
    assert response.status_code == 200, response.text
    assert response.headers["X-Ockham-Ignored-Fields"].startswith("b, ")
