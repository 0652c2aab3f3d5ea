"""Ollama's API, as its clients see it.

What the tiny model says is forced by a grammar where it matters: what is tested is what the server
makes of it. `tests/clients` runs Ollama's own client.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.server.test_tools import CALL, CLOCK, THOUGHT, WEATHER
from tests.helpers.live import LiveServer

ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
GREEDY = {"temperature": 0, "num_predict": 200}
SPENT = {
    *("total_duration", "load_duration", "prompt_eval_count", "prompt_cached_count"),
    *("prompt_eval_duration", "eval_count", "eval_duration"),
}


def saying(text: str) -> dict[str, Any]:
    return {"structured_outputs": {"choice": [text]}, "options": GREEDY}


def whole(live: LiveServer, path: str = "/api/chat", **body: Any) -> dict[str, Any]:
    response = live.post(path, {**body, "stream": False})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return dict(response.json())


def streamed(live: LiveServer, path: str = "/api/chat", **body: Any) -> list[dict[str, Any]]:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    found = [json.loads(line) for line in response.text.splitlines()]
    assert [each["done"] for each in found] == [False] * (len(found) - 1) + [True]
    return found


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


def test_a_stream_adds_up_to_the_whole_answer(talking: LiveServer) -> None:
    asked = {**ASKED, "options": {"temperature": 1, "seed": 7, "num_predict": 12}}
    answer, objects = whole(talking, **asked), streamed(talking, **asked)
    said = "".join(each["message"]["content"] for each in objects)
    assert said == answer["message"]["content"]
    assert len(objects) > 1
    last = objects[-1]
    assert last["message"] == {"role": "assistant", "content": ""}
    for end in (answer, last):
        assert end.keys() == {"model", "created_at", "message", "done", "done_reason"} | SPENT
        assert (end["done_reason"], end["eval_count"]) == ("length", 12)
        assert end["prompt_eval_count"] > 3
        assert end["total_duration"] > end["eval_duration"] > 0
        assert datetime.fromisoformat(end["created_at"]).tzinfo is not None
    assert all(each.keys() == {"model", "created_at", "message", "done"} for each in objects[:-1])


def test_it_is_the_same_request_as_a_chat_completion(talking: LiveServer) -> None:
    options = {"temperature": 1, "top_k": 50, "top_p": 0.9, "seed": 3, "stop": ["e"]}
    penalty = {"repeat_penalty": 1.3, "num_predict": 30}
    answer = whole(talking, **ASKED, options={**options, **penalty})
    body = {**ASKED, **options, "repetition_penalty": 1.3, "max_tokens": 30}
    other = talking.post("/v1/chat/completions", body).json()
    assert answer["message"]["content"] == other["choices"][0]["message"]["content"]
    assert answer["done_reason"] == other["choices"][0]["finish_reason"]
    assert answer["eval_count"] == other["usage"]["completion_tokens"]
    assert answer["prompt_eval_count"] == other["usage"]["prompt_tokens"]


def test_calls_come_whole_and_their_arguments_are_objects(talking: LiveServer) -> None:
    asked = {**ASKED, **saying("Let me see.\n" + CALL + "\n" + CALL), "tools": [WEATHER]}
    answer, objects = whole(talking, **asked), streamed(talking, **asked)
    found = [call for each in objects for call in each["message"].get("tool_calls", ())]
    for calls in (answer["message"]["tool_calls"], found):
        assert [call["function"] for call in calls] == [
            {"index": index, "name": "get_weather", "arguments": {"city": "Rome", "days": 3}}
            for index in range(2)
        ]
        assert len({call["id"] for call in calls}) == 2
    assert answer["message"]["content"] == "Let me see."
    assert (answer["done_reason"], objects[-1]["done_reason"]) == ("stop", "stop")


def test_a_call_that_cannot_be_read_is_text_with_a_warning(talking: LiveServer) -> None:
    text = CALL + '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": }\n</tool_call>'
    asked = {**ASKED, **saying(text), "tools": [WEATHER]}
    answer, objects = whole(talking, **asked), streamed(talking, **asked)
    said = "".join(each["message"]["content"] for each in objects)
    calls = [call for each in objects for call in each["message"].get("tool_calls", ())]
    assert len(calls) == len(answer["message"]["tool_calls"]) == 1
    for end, content in ((answer, answer["message"]["content"]), (objects[-1], said)):
        assert '"arguments": {"city": }' in content
        assert "could not be read" in end["warnings"][0]


def test_thoughts_stand_beside_the_answer(talking: LiveServer) -> None:
    asked = {**ASKED, **saying("so it is\n</think>\n\nYes.")}
    message = whole(talking, **asked, think=True)["message"]
    assert message == {"role": "assistant", "content": "Yes.", "thinking": "so it is"}
    objects = streamed(talking, **asked, think="low")
    assert "".join(each["message"].get("thinking", "") for each in objects) == "so it is"
    asked = {"model": "tiny", "prompt": "x", **saying(THOUGHT + "Yes.")}
    generated = whole(talking, "/api/generate", **asked)
    assert (generated["thinking"], generated["response"]) == ("so it is", "Yes.")
    objects = streamed(talking, "/api/generate", **asked, think=False)
    assert "".join(each["response"] for each in objects) == "Yes."


def test_a_thought_has_a_budget(talking: LiveServer) -> None:
    budget = {"thinking_token_budget": 5, "thinking_closing_text": " Enough."}
    asked = {**ASKED, "think": True, "options": {"temperature": 1, "seed": 2, "num_predict": 40}}
    message = whole(talking, **asked, **budget)["message"]
    assert message["thinking"].endswith("Enough.")
    assert message["content"]
    raw = {"model": "tiny", "prompt": "x", "raw": True, "options": {"num_predict": 2}, **budget}
    assert whole(talking, "/api/generate", **raw)["eval_count"] == 2


def test_a_loop_of_three_calls_ends_in_an_answer(talking: LiveServer) -> None:
    """As ollama-python's examples do it: calls have no ids, results name their tool."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather?"}]
    asked = {"model": "tiny", "messages": messages, "tools": [WEATHER, CLOCK]}
    cached = 0
    for turn in range(3):
        answer = whole(talking, **asked, **saying(CALL))
        [call] = answer["message"]["tool_calls"]
        assert answer["prompt_cached_count"] >= cached
        cached = answer["prompt_eval_count"] - 16
        functions = [{"function": {k: call["function"][k] for k in ("name", "arguments")}}]
        messages += [
            {"role": "assistant", "content": "", "tool_calls": functions},
            {"role": "tool", "tool_name": call["function"]["name"], "content": f"{turn} degrees"},
        ]
    last = whole(talking, **asked, **saying("Cold."))
    assert last["message"] == {"role": "assistant", "content": "Cold."}
    assert last["prompt_cached_count"] >= cached > 0


def test_required_calls_are_an_extra_of_the_house(talking: LiveServer) -> None:
    asked = {**ASKED, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    message = whole(talking, **asked, options={"temperature": 1, "seed": 1})["message"]
    [call] = message["tool_calls"]
    assert call["function"]["arguments"]["city"] in ("Paris", "Rome")


def test_a_format_is_json_or_a_schema(talking: LiveServer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["b"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for path, asked in (
        ("/api/chat", ASKED),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True}),
    ):
        options = {"temperature": 1, "seed": 5}
        answer = whole(talking, path, **asked, format=schema, options=options, think=False)
        text = answer["response"] if "response" in answer else answer["message"]["content"]
        assert json.loads(text)["a"] == "b"


def test_generate_answers_a_prompt_as_a_chat_of_one_message(talking: LiveServer) -> None:
    options = {"temperature": 0, "num_predict": 8}
    asked = {"model": "tiny", "prompt": "x", "system": "Be brief.", "options": options}
    generated, objects = (way(talking, "/api/generate", **asked) for way in (whole, streamed))
    messages = [{"role": "system", "content": "Be brief."}, *ASKED["messages"]]
    chatted = whole(talking, model="tiny", messages=messages, options=options)
    assert generated["response"] == chatted["message"]["content"]
    assert "".join(each["response"] for each in objects) == generated["response"]
    assert objects[-1]["context"] == generated["context"]
    assert len(generated["context"]) == generated["prompt_eval_count"] + generated["eval_count"]
    more = whole(talking, "/api/generate", **{**asked, "context": generated["context"]})
    assert more["prompt_eval_count"] == len(generated["context"]) + generated["prompt_eval_count"]
    assert more["prompt_cached_count"] >= len(generated["context"]) - 1


def test_a_raw_prompt_is_completed_as_it_is(talking: LiveServer) -> None:
    options = {"temperature": 0, "num_predict": 8}
    asked = {"model": "tiny", "prompt": "once upon", "raw": True, "options": options}
    generated = whole(talking, "/api/generate", **asked)
    text = talking.complete(prompt="once upon")["choices"][0]["text"]
    assert generated["response"] == text
    assert "context" not in generated


@pytest.mark.parametrize("keep_alive", [None, 0, "0", "5m", -1, "1h30m", 2.5])
def test_a_request_that_asks_nothing_finds_the_model_loaded(
    talking: LiveServer, keep_alive: Any
) -> None:
    body = {"model": "tiny", "keep_alive": keep_alive}
    for path in ("/api/chat", "/api/generate"):
        answer = talking.post(path, body).json()
        assert (answer["done"], answer["done_reason"]) == (True, "load")


def test_log_probabilities_are_told_for_each_token(talking: LiveServer) -> None:
    asked = {**ASKED, "options": {"temperature": 0, "num_predict": 6}, "logprobs": True}
    answer, objects = (way(talking, **asked, top_logprobs=2) for way in (whole, streamed))
    found = answer["logprobs"]
    assert [each for part in objects for each in part.get("logprobs", ())] == found
    assert len(found) == 6
    for each in found:
        likeliest = each["top_logprobs"]
        assert [likeliest[0][key] for key in ("token", "logprob")] == [
            each["token"],
            each["logprob"],
        ]
        assert len(likeliest) == 2
        assert bytes(each["bytes"]).decode(errors="replace") == each["token"]
    assert "top_logprobs" not in whole(talking, **asked)["logprobs"][0]


def test_options_that_do_nothing_are_taken_and_others_are_told(talking: LiveServer) -> None:
    neutral = {"num_ctx": 4096, "num_gpu": 0, "mirostat": 0, "num_batch": 64, "num_predict": 2}
    response = talking.post("/api/chat", {**ASKED, "stream": False, "options": neutral})
    assert response.status_code == 200
    assert "x-ockham-ignored-fields" not in response.headers
    assert "warnings" not in response.json()
    odd = {"mirostat": 2, "num_thread": 4, "num_ctx": 100_000, "new": 1, "num_predict": 2}
    body = {**ASKED, "stream": False, "options": odd, "truncate": True, "unheard-of": 1}
    response = talking.post("/api/chat", body)
    assert response.status_code == 200
    told = set(response.headers["x-ockham-ignored-fields"].split(", "))
    options = {f"options.{name}" for name in odd if name != "num_predict"}
    assert told == options | {"truncate", "unheard-of"}
    assert "the context of this server, 8192 tokens" in response.json()["warnings"][0]


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("/api/chat", {"options": {"temperature": -1}}, "options.temperature must"),
        ("/api/chat", {"options": {"repeat_penalty": -1}}, "options.repeat_penalty must"),
        ("/api/chat", {"options": {"num_predict": 0}}, "options.num_predict must"),
        ("/api/chat", {"options": {"num_predict": 9000}}, "options.num_predict asks for"),
        ("/api/chat", {"options": {"top_k": "x"}}, "options.top_k is wrong"),
        ("/api/chat", {"options": 5}, "options is wrong"),
        ("/api/chat", {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["A"]}]}, "text"),
        ("/api/chat", {"messages": [{"content": "x"}]}, "messages[0].role is required"),
        ("/api/chat", {"tools": [{"type": "web"}]}, "tools[0]"),
        ("/api/chat", {"format": "yaml"}, "format must be 'json'"),
        ("/api/chat", {"format": {"type": "nothing"}}, "cannot be compiled"),
        ("/api/chat", {"think": "hard"}, "think is wrong"),
        ("/api/chat", {"keep_alive": "soon"}, "keep_alive must"),
        ("/api/chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs must"),
        ("/api/generate", {"images": ["A"]}, "reads text only"),
        ("/api/generate", {"template": "{{ .Prompt }}"}, "template is not supported"),
        ("/api/generate", {"raw": True, "system": "x"}, "raw takes the prompt as it is"),
        ("/api/generate", {"context": [-1]}, "no token id"),
        ("/api/generate", {"prompt": "x" * 2_000_000}, "Shorten it"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    talking: LiveServer, path: str, fields: dict[str, Any], word: str
) -> None:
    asked = ASKED if path == "/api/chat" else {"model": "tiny", "prompt": "x"}
    for stream in (True, False):
        assert word in refused(talking.post(path, {**asked, "stream": stream, **fields}), 400)


def test_a_model_without_thoughts_is_not_asked_for_them(server: LiveServer) -> None:
    """Clients that read these words ask again without."""
    error = refused(server.post("/api/chat", {**ASKED, "think": True}), 400)
    assert "does not support thinking" in error


def test_a_model_has_its_name_with_and_without_a_tag(talking: LiveServer) -> None:
    for name in ("tiny", "tiny:latest", "Tiny"):
        answer = whole(talking, **{**ASKED, "model": name}, options={"num_predict": 1})
        assert answer["model"] == name
        assert talking.post("/api/show", {"model": name}).status_code == 200
    for name in ("tiny:7b", "other", "smollm2", "", "qwen3:99b"):
        for path in ("/api/chat", "/api/generate", "/api/show"):
            status = 400 if path == "/api/show" and not name else 404
            error = refused(talking.post(path, {**ASKED, "model": name}), status)
            assert status == 400 or "not found" in error
    assert "model is required" in refused(talking.post("/api/chat", {"messages": []}), 400)


def test_models_are_described_as_they_are_served(talking: LiveServer) -> None:
    [listed] = talking.get("/api/tags").json()["models"]
    [running] = talking.get("/api/ps").json()["models"]
    shown = talking.post("/api/show", {"name": "tiny"}).json()
    assert listed["name"] == listed["model"] == running["name"] == "tiny:latest"
    assert listed["size"] > 10_000
    assert len(listed["digest"]) == 64
    assert listed["digest"] == running["digest"]
    assert (running["size_vram"], running["context_length"]) == (0, 8192)
    assert running["size"] > 10_000
    for each in (listed, running, shown):
        assert each["details"]["family"] == "llama"
        assert each["details"]["format"] == "safetensors"
    assert shown["capabilities"] == ["completion", "tools", "thinking", "insert"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 8192
    assert shown["model_info"]["general.parameter_count"] > 100_000
    assert "tool_call" in shown["template"]
    assert set(talking.get("/api/version").json()) == {"version", "ockham"}


def test_a_pull_of_the_model_that_is_served_succeeds(talking: LiveServer) -> None:
    assert talking.post("/api/pull", {"model": "tiny"}).text == '{"status":"success"}\n'
    pulled = talking.post("/api/pull", {"name": "tiny:latest", "stream": False})
    assert pulled.json() == {"status": "success"}
    assert "ockham pull" in refused(talking.post("/api/pull", {"model": "qwen3"}), 501)


@pytest.mark.parametrize("name", ["create", "copy", "push"])
def test_what_is_not_here_says_so(talking: LiveServer, name: str) -> None:
    assert f"/api/{name} is not supported" in refused(talking.post(f"/api/{name}", {}), 501)


def test_commands_without_a_content_type_work_and_pages_of_others_do_not(
    talking: LiveServer,
) -> None:
    """`curl -d` says that it sends a form; a page in a browser says which one it is."""
    body = json.dumps({**ASKED, "stream": False, "options": {"num_predict": 1}}).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    def post(path: str, **headers: str) -> httpx.Response:
        return httpx.post(talking.url + path, content=body, headers=form | headers)

    assert post("/api/chat").status_code == 200
    assert "application/json" in refused(post("/api/chat", Origin="http://evil.test"), 415)
    refused(post("/api/chat", **{"Sec-Fetch-Site": "cross-site"}), 415)
    assert post("/v1/chat/completions").status_code == 415


def test_the_command_line_finds_a_server(talking: LiveServer) -> None:
    assert httpx.head(talking.url).status_code == 200
    assert httpx.head(f"{talking.url}/api/version").status_code == 200


def test_requests_of_other_clients_are_taken_as_they_come(talking: LiveServer) -> None:
    """By shape: Ollama's command line, Open WebUI, Continue, Home Assistant."""
    messages = ASKED["messages"]
    short = {"num_predict": 2}
    commanded = {
        "model": "tiny:latest",
        "messages": messages,
        "format": "",
        "keep_alive": "5m0s",
        "think": None,
        "options": short,
    }
    assert talking.post("/api/show", {"model": "tiny", "name": "", "system": ""}).status_code == 200
    load = {"model": "tiny", "prompt": "", "suffix": "", "system": "", "template": ""}
    assert talking.post("/api/generate", {**load, "options": None}).json()["done_reason"] == "load"
    stop = {"model": "tiny:latest", "prompt": "", "keep_alive": "0s"}
    assert talking.post("/api/generate", stop).json()["done"]
    page = {
        "model": "tiny:latest",
        "messages": messages,
        "stream": True,
        "keep_alive": None,
        "options": {**short, "num_ctx": 2048, "stop": [], "temperature": 0.7, "seed": 0},
        "metadata": {"chat_id": "1"},
        "format": None,
    }
    editor = {
        "model": "tiny",
        "raw": True,
        "prompt": "def f(",
        "stream": True,
        "context": [],
        "options": {
            **short,
            "num_thread": 0,
            "num_ctx": 4096,
            "keep_alive": 1800,
            "stop": ["\n\n"],
        },
        "keep_alive": 1800,
    }
    home = {
        "model": "tiny:latest",
        "messages": [{"role": "system", "content": "x"}, *messages],
        "tools": [WEATHER],
        "stream": True,
        "keep_alive": "-1s",
        "options": {"num_ctx": 8192},
        "think": False,
        **saying(CALL),
    }
    for path, body in (
        ("/api/chat", commanded),
        ("/api/chat", page),
        ("/api/generate", editor),
        ("/api/chat", home),
    ):
        assert streamed(talking, path, **body)[-1]["eval_count"] >= 1


def test_the_requests_of_the_page_work(talking: LiveServer) -> None:
    page = (Path(__file__).parents[3] / "docs/ollama.md").read_text()
    found = re.findall(r"(?s)curl http://127.0.0.1:11434(/\S+) -d '(.*?)'", page)
    assert found
    for path, body in found:
        answer = whole(talking, path, **{**json.loads(body), "model": "tiny"})
        assert answer["done"]


def test_a_suffix_is_filled_in(server: LiveServer) -> None:
    body = {"model": "tiny", "prompt": "a = ", "suffix": "\nb", "stream": False}
    options = {"num_predict": 6, "temperature": 0}
    answer = server.post("/api/generate", {**body, "options": options}).json()
    same = {"prompt": "a = ", "suffix": "\nb", "max_tokens": 6, "temperature": 0}
    completion = server.post("/v1/completions", same).json()
    assert answer["response"] == completion["choices"][0]["text"]
    assert answer["prompt_eval_count"] == completion["usage"]["prompt_tokens"]
    refused = server.post("/api/generate", {**body, "system": "x"})
    assert refused.status_code == 400
    assert "suffix" in refused.json()["error"]
