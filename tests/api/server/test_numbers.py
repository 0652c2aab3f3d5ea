"""Every number of every field is bounded where it enters, and nothing that is refused leaves a
trace."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ockham.api.server.protocol import ChatRequest, CompletionRequest
from tests.helpers.live import LiveServer

HUGE = [10**400, -(10**400), 2**64, -(2**63) - 1, 2**128]
WHOLE = ["n", "top_k", "max_tokens", "min_tokens", "seed", "prompt_logprobs", "best_of"]
FLOATS = [
    *("temperature", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAID = [{"role": "user", "content": "a"}]


def refused(server: LiveServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The error of a body that is refused with 400, in a message that is no longer than a line."""
    response = server.post_bytes(path, json.dumps(body).encode())
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert len(error["message"]) < 400
    return dict(error)


@pytest.mark.parametrize("value", [*HUGE, 2.5, True, "5", [], {}])
@pytest.mark.parametrize("field", [*WHOLE, "logprobs"])
def test_what_is_no_integer_in_range_is_refused(server, field, value):
    assert refused(server, COMPLETIONS, {"prompt": "a", field: value})["param"] == field


@pytest.mark.parametrize("value", [*HUGE, True, "5", [], {}])
@pytest.mark.parametrize("field", [*FLOATS, "recompute_fraction"])
def test_what_is_no_number_in_range_is_refused(server, field, value):
    body = {"prompt": "a", field: value, "reuse": "chunk"}
    assert refused(server, COMPLETIONS, body)["param"] == field


@pytest.mark.parametrize("number", ["1" + "0" * 5000, "1e400", "-1e999"])
def test_what_is_no_number_of_any_field_is_refused_in_a_sentence(server, number):
    response = server.post_bytes(COMPLETIONS, f'{{"prompt":"a","max_tokens":{number}}}'.encode())
    assert response.status_code == 400
    assert "a number that is out of range" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", [*HUGE, -1, 21])
def test_top_logprobs_are_named_as_the_caller_did(server, value):
    body = {"messages": SAID, "logprobs": True, "top_logprobs": value}
    error = refused(server, CHAT, body)
    assert error["param"] == "top_logprobs"
    assert error["message"].startswith("top_logprobs ")


@pytest.mark.parametrize("value", [*HUGE, -1, 0, 10**6])
def test_max_completion_tokens_are_named_as_the_caller_did(server, value):
    error = refused(server, CHAT, {"messages": SAID, "max_completion_tokens": value})
    assert error["param"] == "max_completion_tokens"
    assert "max_completion_tokens" in error["message"]


@pytest.mark.parametrize("value", [*HUGE, -1, 2**31, 5.5, "5", None, True])
@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids"])
def test_ids_in_lists_are_bounded(server, field, value):
    assert field in refused(server, COMPLETIONS, {"prompt": "a", field: [value]})["param"]


@pytest.mark.parametrize("key", [*map(str, HUGE), "-1", str(2**31), "abc", "", "1.5", " 5", "٥"])
def test_ids_in_keys_are_bounded(server, key):
    error = refused(server, COMPLETIONS, {"prompt": "a", "logit_bias": {key: 1}})
    assert error["param"] == "logit_bias"
    assert "`" not in error["message"]


@pytest.mark.parametrize("value", [*HUGE, "1", True, 101])
def test_biases_are_bounded(server, value):
    body = {"prompt": "a", "logit_bias": {"5": value}}
    assert refused(server, COMPLETIONS, body)["param"].startswith("logit_bias")


@pytest.mark.parametrize("value", [*HUGE, -1, 4096, 5.5, "x", None])
def test_tokens_of_prompts_are_bounded(server, value):
    for body in ({"prompt": [5, value]}, {"prompt": [[5, value]]}):
        assert refused(server, COMPLETIONS, body)["param"].startswith("prompt")
    refused(server, "/detokenize", {"tokens": [5, value]})
    refused(server, "/v1/cache/pin", {"prompt": [5, value]})


@pytest.mark.parametrize("value", [*HUGE, -1, 2.5, True, "5"])
def test_the_nodes_of_a_cache_report_are_bounded(server, value):
    assert refused(server, "/v1/cache", {"most_nodes": value})["param"] == "most_nodes"


@pytest.mark.parametrize("value", [*HUGE[:4]])
@pytest.mark.parametrize("as_text", [False, True])
def test_numbers_of_a_schema_are_bounded(server, value, as_text):
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer", "maximum": value}}}
    if as_text:
        asked = {"structured_outputs": {"json": json.dumps(schema)}}
    else:
        asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}
        asked["response_format"]["json_schema"]["schema"] = schema
    error = refused(server, CHAT, {"messages": SAID, **asked})
    assert error["param"].startswith(("structured_outputs", "response_format"))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [101, 990, 5000])
def test_what_is_nested_too_deeply_is_refused(server, levels):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    deep = "[" * levels + "]" * levels
    bodies = [
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [call]}]}, "arguments"),
        (CHAT, {"messages": SAID, "chat_template_kwargs": {"a": 1}}, "a"),
        (CHAT, {"messages": SAID, "structured_outputs": {"json": {"default": 1}}}, "default"),
    ]
    for path, body, name in bodies:
        text = json.dumps(body)
        old, new = f'"{name}": 1', f'"{name}": {deep}'
        if name == "arguments":
            old, new = f'"{name}": ""', f'"{name}": "{deep}"'
        assert old in text
        response = server.post_bytes(path, text.replace(old, new).encode())
        assert response.status_code == 400, response.text


def test_a_whole_float_is_taken_where_an_integer_is_meant(server):
    body = {"prompt": "a", "max_tokens": 3.0, "ignore_eos": True, "n": 1.0, "stop_token_ids": [5.0]}
    assert server.complete(**body)["usage"]["completion_tokens"] == 3


def test_what_is_refused_is_not_echoed_whole(server):
    error = refused(server, COMPLETIONS, {"prompt": "a", "seed": 10**400})
    assert "401 digits" in error["message"]
    error = refused(server, COMPLETIONS, {"prompt": "a", "x" * 100_000: 1})
    assert len(error["param"]) < 100


# -- anything in any field ----------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-3, 5),
    st.integers(-(10**40), 10**40),
    st.sampled_from([*HUGE, 2**31, 2**53 + 1, 2**63, 10**4000]),
    st.floats(allow_nan=False, allow_infinity=False),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=4), numbers.map(str)), inner, max_size=3),
    ),
    max_leaves=6,
)


def fields(kind: type, required: str) -> st.SearchStrategy[dict[str, Any]]:
    names = sorted({*kind.__struct_fields__, *kind.neutral} - {required})  # type: ignore[attr-defined]
    return st.dictionaries(st.sampled_from(names), values, max_size=4)


FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(body=fields(CompletionRequest, "prompt"), prompt=st.one_of(st.just("a"), values))
def test_no_value_of_a_completion_is_a_fault(server, body, prompt):
    never_a_fault(server, COMPLETIONS, {"max_tokens": 2, **body, "prompt": prompt})


@FUZZ
@given(body=fields(ChatRequest, "messages"), messages=st.one_of(st.just(SAID), values))
def test_no_value_of_a_chat_is_a_fault(server, body, messages):
    never_a_fault(server, CHAT, {"max_tokens": 2, **body, "messages": messages})


@FUZZ
@given(
    path=st.sampled_from(
        ["/tokenize", "/detokenize", "/v1/cache", "/v1/cache/pin", "/v1/cache/unpin"]
    ),
    body=st.dictionaries(
        st.sampled_from(
            ["prompt", "tokens", "messages", "most_nodes", "name", "cache_salt", "model"]
        ),
        values,
    ),
)
def test_no_value_of_the_other_bodies_is_a_fault(server, path, body):
    never_a_fault(server, path, body)


def never_a_fault(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    response = server.post_bytes(path, json.dumps(body).encode())
    assert response.status_code in (200, 400, 404), (response.text, body)


@pytest.fixture(autouse=True, scope="module")
def healthy_afterwards(server):
    """Nothing of it is left, and no fault was logged."""
    yield
    server.wait_idle()
    assert server.get("/health").status_code == 200
    assert "Traceback" not in server.log
