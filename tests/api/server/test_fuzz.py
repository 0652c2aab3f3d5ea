"""Whatever is sent, the answer is a completion or a refusal: never a fault, never a sick server."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.live import LiveServer

EXAMPLES = 120
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STATUSES = {200, 400, 404, 413, 415}

numbers = st.one_of(
    st.integers(-3, 5),
    st.floats(-1, 3),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 1e300, -0.0, 0.5, True]),
)
words = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "\u0000", "\ud7ff", "🙂", "<|im_end|>"])
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
tokens = st.lists(st.integers(-1, 4100), max_size=6)

plausible: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(0, 4),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0, 3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 4100).map(str), st.floats(-100, 100), max_size=3),
    "allowed_token_ids": tokens,
    "bad_words": st.lists(words, max_size=3),
    "stop": st.one_of(words, st.lists(words, max_size=3)),
    "stop_token_ids": tokens,
    "min_tokens": st.integers(0, 3),
    "ignore_eos": st.booleans(),
    "seed": st.integers(-(2**63), 2**64 - 1),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "prompt_logprobs": st.integers(-1, 5),
    "return_token_ids": st.booleans(),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans()}
    ),
    "user": words,
    "model": st.sampled_from(["tiny", "gpt-4"]),
}
completion_fields = {
    **plausible,
    "logprobs": st.integers(-1, 5),
    "echo": st.booleans(),
    "best_of": st.integers(1, 3),
}
chat_fields = {
    **plausible,
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 5),
    "tools": st.sampled_from([[], None, [{}]]),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "chat_template_kwargs": st.dictionaries(words, json_values, max_size=2),
    "add_generation_prompt": st.booleans(),
}
prompts = st.one_of(
    words,
    tokens,
    st.lists(words, max_size=3),
    st.lists(tokens, max_size=3),
    json_values,
)
messages = st.one_of(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant", "tool", "x"]),
                "content": st.one_of(
                    words, st.lists(st.fixed_dictionaries({"type": words, "text": words}))
                ),
            },
            optional={"name": words, "tool_calls": json_values, "refusal": st.none()},
        ),
        max_size=3,
    ),
    json_values,
)

kinds = ["message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "x"]
items = st.one_of(
    words,
    st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(kinds), "role": st.sampled_from(["system", "user", "x"])},
            optional={
                "content": st.one_of(
                    words,
                    st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": words})),
                    json_values,
                ),
                "call_id": words,
                "name": st.sampled_from(["f", "g"]),
                "arguments": st.sampled_from(["{}", '{"a": [1]}', "{"]),
                "input": words,
                "output": st.one_of(words, json_values),
                "summary": st.lists(
                    st.fixed_dictionaries({"type": st.just("summary_text"), "text": words})
                ),
                "encrypted_content": words,
            },
        ),
        max_size=4,
    ),
    json_values,
)
offered = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom", "namespace", "web_search"])},
    optional={
        "name": st.sampled_from(["f", "g", "a b"]),
        "parameters": st.sampled_from([{}, {"type": "object"}, {"type": 3}]),
        "format": json_values,
        "strict": st.booleans(),
        "tools": st.sampled_from([[{"type": "function", "name": "h"}], [{}], [3], 3]),
    },
)
chosen = ["auto", "none", "required", {"type": "custom", "name": "g"}, {"type": "web_search"}]
response_fields = {
    **{name: plausible[name] for name in ("temperature", "top_p", "stop", "seed", "stream")},
    "max_output_tokens": st.integers(0, 4),
    "tools": st.lists(offered, max_size=3),
    "tool_choice": st.sampled_from(chosen),
    "reasoning": st.sampled_from([{"effort": "low", "summary": "auto"}, {"effort": "x"}, {}]),
    "text": st.sampled_from([{"format": {"type": "json_object"}}, {"format": {}}, {}]),
    "top_logprobs": st.integers(0, 3),
    "include": st.lists(words, max_size=2),
    "metadata": st.dictionaries(words, words, max_size=2),
}


@st.composite
def bodies(draw, required: str, values, fields) -> dict[str, Any]:
    """A body of which most is plausible and a little is not."""
    body = {required: draw(values), "max_tokens": draw(st.integers(0, 4))}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True)):
        body[name] = draw(fields[name])
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.one_of(st.sampled_from(sorted(fields)), words))
        body[name] = draw(json_values)
    return body


def check(server: LiveServer, path: str, body: bytes) -> None:
    response = server.post_bytes(path, body)
    assert response.status_code in STATUSES, (response.status_code, response.text, body)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    elif response.headers["content-type"].startswith("text/event-stream"):
        last = response.text.rsplit("data: ", 1)[1].strip()
        if path == "/v1/responses":
            assert json.loads(last)["type"] in ("response.completed", "response.incomplete")
        else:
            assert last == "[DONE]"
    else:
        json.loads(response.text)


@FUZZ
@given(body=bodies("prompt", prompts, completion_fields))
def test_no_completion_request_is_a_fault(server, body):
    check(server, "/v1/completions", json.dumps(body).encode())


@FUZZ
@given(body=bodies("messages", messages, chat_fields))
def test_no_chat_request_is_a_fault(server, body):
    check(server, "/v1/chat/completions", json.dumps(body).encode())


@FUZZ
@given(body=bodies("input", items, response_fields))
def test_no_request_for_a_response_is_a_fault(server, body):
    check(server, "/v1/responses", json.dumps({"max_output_tokens": 4, **body}).encode())


@FUZZ
@given(
    path=st.sampled_from(["/tokenize", "/detokenize", "/v1/completions", "/v1/chat/completions"]),
    body=st.one_of(st.binary(max_size=64), json_values.map(lambda v: json.dumps(v).encode())),
)
def test_no_body_is_a_fault(server, path, body):
    check(server, path, body)


@FUZZ
@given(path=st.text(st.characters(codec="ascii", exclude_characters="#?"), max_size=30))
def test_no_path_is_a_fault(server, path):
    response = server.get(f"/{quote(path)}")
    assert response.status_code in (200, 404)


@pytest.fixture(autouse=True, scope="module")
def healthy_afterwards(server):
    """After all of it the server is well, nothing is left running, and no fault was logged."""
    yield
    server.wait_idle()
    assert server.get("/health").status_code == 200
    assert "Traceback" not in server.log
