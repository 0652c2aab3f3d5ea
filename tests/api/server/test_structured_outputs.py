"""Structured outputs over HTTP, under OpenAI's names and vLLM's."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import openai
import pytest

from tests.helpers.live import LiveServer

MESSAGES = [{"role": "user", "content": "Order 17 as JSON."}]
SCHEMA = {
    "type": "object",
    "properties": {"order_number": {"enum": [17, 18]}, "state": {"enum": ["open", "closed"]}},
    "required": ["order_number", "state"],
    "additionalProperties": False,
}
NUMBERS = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "order", "schema": SCHEMA, "strict": True},
}
ASKED: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 250, "seed": 5}
ASKED |= {"frequency_penalty": 2.0}  # or a random model may go on with white space


def chat(server: LiveServer, **fields: Any) -> Any:
    return server.post("/v1/chat/completions", {**ASKED, **fields})


def content(server: LiveServer, **fields: Any) -> str:
    choice = chat(server, **fields).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def test_an_answer_follows_its_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, response_format=FORMAT, n=2)
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            value = json.loads(choice.message.content)
            assert list(value) == ["order_number", "state"]
    assert any(choice.finish_reason == "stop" for choice in answer.choices)


def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, response_format=FORMAT)
    stream = client.chat.completions.create(**ASKED, response_format=FORMAT, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_any_json_object(server: LiveServer) -> None:
    bias = {"response_format": {"type": "json_object"}, "temperature": 0.3}
    answer = chat(server, **bias).json()["choices"][0]
    text = answer["message"]["content"]
    assert text.lstrip().startswith("{")
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_where_llama_cpp_and_together_have_it(server: LiveServer, kind: str) -> None:
    expected = content(server, response_format=FORMAT)
    assert content(server, response_format={"type": kind, "schema": SCHEMA}) == expected
    refused = chat(server, response_format={"type": "text", "schema": SCHEMA})
    assert refused.json()["error"]["param"] == "response_format.schema"


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ({"choice": ["positive", "negative"]}, ["positive", "negative"]),
        ({"regex": "(yes|no)!"}, ["yes!", "no!"]),
        ({"grammar": 'root ::= "a" | "b" "c"'}, ["a", "bc"]),
        ({"json": {"const": {"a": 1}}, "disable_any_whitespace": True}, ['{"a":1}']),
    ],
)
def test_vllms_names(server: LiveServer, asked: dict[str, Any], texts: list[str]) -> None:
    assert content(server, structured_outputs=asked) in texts
    body = {"model": "tiny", "prompt": "x", "max_tokens": 60, "structured_outputs": asked}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"] in texts
    assert choice["finish_reason"] == "stop"


def test_text_asks_for_nothing(server: LiveServer) -> None:
    plain = chat(server, max_tokens=5).json()["choices"][0]["message"]["content"]
    asked = chat(server, max_tokens=5, response_format={"type": "text"}).json()
    assert asked["choices"][0]["message"]["content"] == plain


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_format": {"type": "json_schema"}}, "exactly where its type"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"response_format": FORMAT, "structured_outputs": {"regex": "a"}}, "send one of them"),
        ({"structured_outputs": {"regex": "a("}}, "unclosed group"),
        ({"structured_outputs": {"json": {"type": "string", "not": {}}}}, "Unimplemented keys"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "exactly one of"),
        ({"structured_outputs": {"regex": "\\"}}, "escapes nothing"),
        ({"structured_outputs": {"json": {"minimum": 10**400}}}, "integers must lie in"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": NUMBERS},
                }
            },
            "use anyOf",
        ),
        ({"structured_outputs": {"json": {"minProperties": 2}}}, "may come twice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag is not a field"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    server: LiveServer, fields: dict[str, Any], reason: str
) -> None:
    for stream in (False, True):
        response = chat(server, **fields, stream=stream)
        assert response.status_code == 400, response.text
        assert reason in response.json()["error"]["message"]
    assert server.get("/health").status_code == 200


def test_heavy_grammars_hold_nobody_up(server: LiveServer) -> None:
    """A stream goes on while they are compiled: one that is taken, and some that are refused."""
    properties = {f"key{i}": {"type": "string"} for i in range(1500)}
    heavy = {"type": "object", "properties": properties, "required": list(properties)}
    hostile = (
        "start: T\nT: /(.|\\n)*a(.|\\n){16}/ & /(.|\\n)*b(.|\\n){15}/ & ~/(.|\\n)*c(.|\\n){14}/"
    )
    asked: list[dict[str, Any]] = [{"json": heavy}]
    asked += [{"grammar": f"{hostile} & ~/{i}/"} for i in range(2)]
    answers: list[Any] = [None] * len(asked)

    def ask(number: int) -> None:
        body = {**ASKED, "structured_outputs": asked[number], "max_tokens": 4}
        answers[number] = server.post("/v1/chat/completions", body, timeout=240.0)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    gaps: list[float] = []
    while any(thread.is_alive() for thread in threads):
        last_s = time.monotonic()
        body = {**ASKED, "max_tokens": 100, "stream": True, "ignore_eos": True}
        with server._http.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    gaps.append(time.monotonic() - last_s)
                    last_s = time.monotonic()
    for thread in threads:
        thread.join()
    assert '"completion_tokens":4' in answers[0].text, answers[0].text
    assert [answer.status_code for answer in answers[1:]] == [400] * 2
    assert all("make it simpler" in answer.text for answer in answers[1:])
    # They are refused anew at once, each compiled once only.
    assert chat(server, structured_outputs=asked[1], max_tokens=4).status_code == 400
    # A gap or two may be the machine's: a step that waited would make one for each grammar.
    assert sorted(gaps)[-3] < 0.5, sorted(gaps)[-8:]
