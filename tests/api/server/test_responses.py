"""OpenAI's Responses API, as the official client sees it.

What the tiny model says is forced by a grammar: what is tested is what the server makes of it.
"""

from __future__ import annotations

import json
import re
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import openai
import pytest
from pydantic import BaseModel

from ockham.api.server.responses.request import ResponseRequest
from tests.api.server.test_tools import CALL, THOUGHT
from tests.helpers.live import ROOT, LiveServer

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["city", "days"],
    },
}
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
TEXT = '*** Begin Patch\n+say "é😀"\n*** End Patch'
CALLED = json.dumps({"name": "apply_patch", "arguments": {"input": TEXT}})
PATCHED = f"<tool_call>\n{CALLED}\n</tool_call>"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "input": "x",
    "max_output_tokens": 300,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def talker(talking: LiveServer) -> openai.OpenAI:
    return talking.openai()


def saying(text: str) -> dict[str, Any]:
    """What makes the model say a text, and nothing else."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}}


def events(live: LiveServer, **asked: Any) -> list[dict[str, Any]]:
    """The events of a stream, which are named and numbered as they must be."""
    more = asked.pop("extra_body", {})
    response = live.post("/v1/responses", {**asked, **more, "stream": True})
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        made = json.loads(data.removeprefix("data: "))
        assert name == f"event: {made['type']}"
        found.append(made)
    assert [made["sequence_number"] for made in found] == list(range(len(found)))
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    """The types of events, those in a row of one type once."""
    names = [made["type"].removeprefix("response.") for made in found]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def stripped(items: Any) -> Any:
    """Items without what is new each time."""
    return [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in items
    ]


def test_a_text_is_a_message(talker: openai.OpenAI) -> None:
    answer = talker.responses.create(**ASKED, **saying("Yes."), instructions="Be brief.")
    assert answer.output_text == "Yes."
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.id.startswith("resp_")
    assert answer.instructions == "Be brief."
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.to_dict()["store"] is False


def test_a_request_may_see_its_course(talking: LiveServer) -> None:
    asked = {**ASKED, **saying("Yes."), "return_ledger": True, "return_timings": True}
    found = events(talking, **asked, return_progress=True, instructions="see")
    (progress,) = [made for made in found if made["type"] == "response.prompt_progress"]
    assert progress["prompt_progress"]["processed"] == progress["prompt_progress"]["total"]
    assert found.index(progress) == 2
    last = found[-1]["response"]
    ledger = last["ockham"]["ledger"]
    assert ledger["prompt_tokens_reused"] == last["usage"]["input_tokens_details"]["cached_tokens"]
    assert last["ockham"]["timings"]["predicted_n"] == last["usage"]["output_tokens"]


TEXT_EVENTS = [
    *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
    *("content_part.done", "output_item.done"),
]
BEGIN = ["created", "in_progress"]


def test_a_stream_has_all_events_in_order_and_adds_up(
    talking: LiveServer, talker: openai.OpenAI
) -> None:
    asked = {**ASKED, **saying("Yes, it is so.")}
    found = events(talking, **asked)
    assert kinds(found) == [*BEGIN, *TEXT_EVENTS, "completed"]
    whole = talker.responses.create(**asked)
    assert "".join(made.get("delta", "") for made in found) == whole.output_text
    first, last = found[0]["response"], found[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert first["id"] == last["id"]
    assert stripped(last["output"]) == stripped(item.to_dict() for item in whole.output)
    assert last["usage"]["output_tokens"] == whole.to_dict()["usage"]["output_tokens"]
    items = [made["item"] for made in found if made["type"] == "response.output_item.done"]
    assert items == last["output"]
    (message,) = items
    assert {made["item_id"] for made in found if "item_id" in made} == {message["id"]}


def test_a_call_is_an_item(talking: LiveServer, talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying("Let me see.\n" + CALL), "tools": [WEATHER]}
    message, call = talker.responses.create(**asked).output
    assert message.type == "message"
    assert message.content[0].text == "Let me see."  # type: ignore[union-attr]
    assert call.type == "function_call"
    assert (call.name, call.status) == ("get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Rome", "days": 3}
    assert call.call_id.startswith("call_")
    found = events(talking, **asked)
    call_events = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds(found) == [
        *(*BEGIN, *TEXT_EVENTS),
        *("output_item.added", *call_events, "output_item.done", "completed"),
    ]
    assert stripped(found[-1]["response"]["output"]) == stripped(
        [message.to_dict(), call.to_dict()]
    )
    deltas = [made["delta"] for made in found if made["type"].endswith("arguments.delta")]
    assert "".join(deltas) == call.arguments


def test_thoughts_are_items_and_come_back(talking: LiveServer, talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying(THOUGHT + "Yes."), "tools": [WEATHER]}
    answer = talker.responses.create(**asked)
    thought, message = answer.output
    assert thought.type == "reasoning"
    assert [part.to_dict() for part in thought.content or ()] == [
        {"type": "reasoning_text", "text": "so it is"}
    ]
    assert answer.output_text == "Yes."
    assert answer.usage is not None
    assert 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens
    found = events(talking, **asked)
    assert kinds(found)[2:8] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
    ]
    assert stripped(found[-1]["response"]["output"]) == stripped(
        [thought.to_dict(), message.to_dict()]
    )


def test_a_thought_has_a_budget(talker: openai.OpenAI) -> None:
    asked = {**ASKED, "max_output_tokens": 60, "reasoning": {"effort": "low"}}
    more = {"thinking_token_budget": 8, "thinking_closing_text": "Enough.", "seed": 3}
    answer = talker.responses.create(**asked, extra_body=more)
    thought = answer.output[0]
    assert thought.type == "reasoning"
    assert (thought.content or [])[0].text.endswith("Enough.")


def test_a_summary_is_the_thought_and_it_is_sealed(talking: LiveServer) -> None:
    wanted = {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    found = events(talking, **ASKED, **saying(THOUGHT + "Yes."), **wanted)
    assert kinds(found)[2:8] == [
        *("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
    ]
    thought, _ = found[-1]["response"]["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "so it is"}]
    assert "content" not in thought
    only_sealed = {"type": "reasoning", "summary": [], "id": thought["id"]}
    only_sealed["encrypted_content"] = thought["encrypted_content"]
    said = {"role": "assistant", "content": "Yes."}
    assert "so it is" in prompt(talking, [only_sealed, said])


def prompt(live: LiveServer, items: list[dict[str, Any]], **more: Any) -> str:
    """The prompt that is made of items: the first token of its echo would not say."""
    body = {**ASKED, "input": items, "max_output_tokens": 1, **more}
    tokens = live.post("/v1/responses", body).json()["usage"]["input_tokens"]
    made = live.post("/tokenize", {"messages": made_of(items, **more)}).json()
    if not more.get("tools"):
        assert made["count"] == tokens
    text: str = live.post("/detokenize", {"tokens": made["tokens"]}).json()["prompt"]
    return text


def made_of(items: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """The messages that items are."""
    body = msgspec.convert({"input": items, **more}, ResponseRequest)
    return [msgspec.to_builtins(message) for message in body.chat().messages]


def test_custom_tools_get_text(talking: LiveServer, talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying(PATCHED), "tools": [PATCH]}
    (call,) = talker.responses.create(**asked).output
    assert call.type == "custom_tool_call"
    assert (call.name, call.input) == ("apply_patch", TEXT)
    found = events(talking, **asked)
    input_events = ["custom_tool_call_input.delta", "custom_tool_call_input.done"]
    assert kinds(found) == [
        *(*BEGIN, "output_item.added", *input_events, "output_item.done", "completed")
    ]
    assert "".join(made.get("delta", "") for made in found) == TEXT
    assert stripped(found[-1]["response"]["output"]) == stripped([call.to_dict()])


def test_namespaces_are_flat_for_the_model_only(talker: openai.OpenAI) -> None:
    weather = {**WEATHER, "name": "get"}
    tools = [
        {"type": "namespace", "name": "mcp__sky__", "description": "", "tools": [weather]},
        {"type": "web_search"},
    ]
    said = CALL.replace("get_weather", "mcp__sky__get")
    answer = talker.responses.create(**ASKED, **saying(said), tools=tools)  # type: ignore[call-overload]
    (call,) = answer.output
    assert (call.name, call.namespace) == ("get", "mcp__sky__")
    assert "tools[1] (web_search)" in answer.to_dict()["warnings"][0]
    assert answer.to_dict()["tools"] == tools


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
def test_required_calls_follow_their_schema(talker: openai.OpenAI, choice: Any) -> None:
    asked = {**ASKED, "tools": [WEATHER, PATCH], "tool_choice": choice, "temperature": 1}
    if choice == "required":
        asked["tools"] = [WEATHER]
    (call,) = talker.responses.create(**asked, parallel_tool_calls=False).output
    assert call.type == "function_call"
    found = json.loads(call.arguments)
    assert found["city"] in ("Paris", "Rome")
    assert 0 <= found["days"] <= 9


class City(BaseModel):
    name: Literal["Rome", "Paris"]


def test_text_follows_a_schema(client: openai.OpenAI, talker: openai.OpenAI) -> None:
    asked = {**ASKED, "temperature": 1, "extra_body": {"seed": 1}}
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    answer = client.responses.create(**asked, text={"format": form, "verbosity": "low"})
    assert json.loads(answer.output_text) == {"a": "b"}
    assert answer.text is not None
    assert answer.text.verbosity == "low"
    parsed = client.responses.parse(**asked, text_format=City)
    assert isinstance(parsed.output_parsed, City)
    with talker.responses.stream(**ASKED, **saying('{"name": "Rome"}')) as stream:
        told = [event.type for event in stream]
        final = stream.get_final_response()
    assert told[-1] == "response.completed"
    assert final.output_text == '{"name": "Rome"}'


def test_a_call_that_breaks_off_is_text(talking: LiveServer, talker: openai.OpenAI) -> None:
    broken = CALL[: CALL.index("Rome") + 2]
    asked = {**ASKED, **saying(broken), "tools": [WEATHER]}
    answer = talker.responses.create(**asked)
    assert answer.output_text == broken
    assert answer.to_dict()["warnings"]
    found = events(talking, **asked)
    assert stripped(found[-1]["response"]["output"]) == stripped(answer.to_dict()["output"])
    done = [made["item"] for made in found if made["type"] == "response.output_item.done"]
    assert [(item["type"], item["status"]) for item in done] == [
        ("function_call", "incomplete"),
        ("message", "completed"),
    ]
    with talker.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == broken


def test_an_answer_that_is_cut_is_incomplete(talking: LiveServer, talker: openai.OpenAI) -> None:
    asked = {**ASKED, **saying("Yes, it is so."), "max_output_tokens": 2}
    answer = talker.responses.create(**asked)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert events(talking, **asked)[-1]["type"] == "response.incomplete"
    asked = {**ASKED, **saying("x" + " x" * 40)}
    asked["extra_body"]["repetition_detection"] = {"max_pattern_size": 8, "min_count": 4}
    answer = talker.responses.create(**asked)
    assert answer.status == "incomplete"
    assert answer.to_dict()["incomplete_details"] == {"reason": "repetition"}


def test_log_probabilities_are_those_of_the_text(
    talking: LiveServer, talker: openai.OpenAI
) -> None:
    asked = {**ASKED, **saying(THOUGHT + "Yes."), "top_logprobs": 2}
    asked["include"] = ["message.output_text.logprobs"]
    _, message = talker.responses.create(**asked).output
    entries = message.content[0].logprobs  # type: ignore[union-attr]
    assert "".join(entry.token for entry in entries) == "Yes."
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    found = events(talking, **asked)
    told = [entry for made in found for entry in made.get("logprobs", ()) if "delta" in made]
    assert "Yes." in "".join(entry["token"] for entry in told)


def test_a_conversation_goes_on_from_items(talker: openai.OpenAI) -> None:
    first = talker.responses.create(**{**ASKED, **saying(THOUGHT + CALL), "tools": [WEATHER]})
    history: list[Any] = [{"role": "user", "content": "x"}, *first.output]
    (call,) = [item for item in first.output if item.type == "function_call"]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    asked = {**ASKED, **saying("Sunny."), "input": history, "tools": [WEATHER]}
    answer = talker.responses.create(**asked)
    assert answer.output_text == "Sunny."


@pytest.mark.parametrize(
    ("field", "value", "param", "words"),
    [
        ("previous_response_id", "resp_1", None, "keeps nothing"),
        ("conversation", {"id": "c"}, None, "keeps nothing"),
        ("background", True, None, "as a stream"),
        ("prompt", {"id": "p"}, None, "instructions"),
        ("top_logprobs", 21, None, "[0, 20]"),
        ("max_output_tokens", -1, None, "max_output_tokens"),
        ("temperature", -1, None, "temperature"),
        ("reasoning", {"effort": "huge"}, "reasoning.effort", "minimal"),
        ("input", [{"type": "item_reference", "id": "1"}], "input[0]", "keeps nothing"),
        ("input", [{"role": "clown", "content": "x"}], "input[0].role", "developer"),
        ("input", [{"type": "function_call", "name": "f"}], "input[0].arguments", "missing"),
        ("input", [{"content": "f"}], "input[0].type", "missing"),
        (
            "input",
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[0].content[0]",
            "text only",
        ),
        (
            "input",
            [
                {"type": "web_search_call"},
                {"type": "function_call", "name": "f", "call_id": "1", "arguments": "{"},
            ],
            "input",
            "input[1] has a tool call whose arguments are not JSON",
        ),
        ("input", [], "input", "empty"),
        ("tools", [{"type": "web_search"}, {"type": "function"}], "tools[1].name", "text"),
        (
            "tools",
            [{"type": "web_search"}, {"type": "function", "name": "a b"}],
            "tools[1].name",
            "letters",
        ),
        ("tool_choice", "required", None, "there are none"),
        ("tool_choice", {"type": "file_search"}, None, "do not run here"),
        ("text", {"format": {"type": "json_schema"}}, "text.format.schema", "missing"),
        (
            "text",
            {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}},
            None,
            "cannot be compiled",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_its_words(
    talking: LiveServer, field: str, value: Any, param: str | None, words: str
) -> None:
    for stream in (False, True):
        response = talking.post("/v1/responses", {**ASKED, field: value, "stream": stream})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"
        if param is not None:
            assert error["param"] == param
        assert "messages" not in error["message"]


def test_unknown_fields_are_passed_over_and_told(talking: LiveServer) -> None:
    body = {**ASKED, **saying("Yes.")["extra_body"], "store": True, "truncation": "auto"}
    body |= {"client_metadata": {"a": "b"}, "max_output_tokens": 8, "unheard": 1, "": 2}
    body |= {
        "tools": [{"type": "image_generation"}],
        "metadata": {"k": "v"},
        "service_tier": "flex",
    }
    response = talking.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    ignored = response.headers["x-ockham-ignored-fields"]
    assert ignored == "unheard, '', tools[0] (image_generation)"
    answer = response.json()
    assert (answer["store"], answer["truncation"]) == (False, "disabled")
    assert (answer["metadata"], answer["service_tier"]) == ({"k": "v"}, "default")


def test_nothing_is_stored(talking: LiveServer) -> None:
    for path in ("resp_1", "resp_1/cancel", "resp_1/input_items"):
        response = talking.get(f"/v1/responses/{path}")
        assert response.status_code == 404
        assert "keeps nothing" in response.json()["error"]["message"]


def test_the_example_of_the_page_works(talker: openai.OpenAI) -> None:
    """The tiny model would go on for ever."""
    page = (ROOT / "docs/responses.md").read_text()
    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```", page)
    responses = SimpleNamespace(create=partial(talker.responses.create, max_output_tokens=100))
    told: dict[str, Any] = {"client": SimpleNamespace(responses=responses), "name": "tiny"}
    exec(compile(example, "docs/responses.md", "exec"), {**told, "tools": [WEATHER]}, told)
    kinds = [item["type"] if isinstance(item, dict) else item.type for item in told["history"][1:]]
    assert kinds.count("function_call") == kinds.count("function_call_output") > 0, told["history"]
    assert told["answer"].status in ("completed", "incomplete")
