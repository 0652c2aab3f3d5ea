"""`ockham warm`: what requests begin with is on disk before the first one comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ockham.cli.main import cli
from ockham.core.errors import OckhamError
from tests.helpers.families import FAMILIES
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama

PAGE = 16
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
FUNCTION = TOOL["function"]
TOOL_OF_ANTHROPIC = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
SYSTEM = "You are an agent. " * 12


class Place:
    """A model, its store, and files of requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = tiny_llama(directory / "tiny", tokenizer=True, max_position_embeddings=4096)
        template = directory / "template.jinja"
        template.write_text("{{ tools | tojson if tools }}" + FAMILIES["hermes"].template)
        store = ("--kv-store", str(directory / "store"))
        self.flags = ("--chat-template", str(template), "--kv-cache-memory-bytes", "16M", *store)

    def warm(self, text: str, *more: str) -> Result:
        path = self.directory / "requests"
        path.write_text(text)
        args = ["warm", str(self.model), "--from", str(path), *self.flags, *more]
        return CliRunner().invoke(cli, args)

    def live(self, *more: str) -> LiveServer:
        return LiveServer(self.model, self.directory, *self.flags, *more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def chat(question: str, system: str = SYSTEM, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"messages": messages, "tools": [TOOL], **more}


def cached(live: LiveServer, body: dict[str, Any], **headers: str) -> tuple[int, int]:
    """How many tokens of a prompt a server did not compute, and how many it has."""
    response = live.post("/v1/chat/completions", {**body, "max_tokens": 1}, headers=headers)
    usage = response.json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_the_first_turn_after_a_start_costs_its_new_tokens_only(place: Place) -> None:
    done = place.warm(json.dumps(chat("Is it warm in Rome?")))
    assert done.exit_code == 0, done.output
    tokens = int(done.output.split("requests: ")[-1].split(" tokens")[0])
    with place.live() as live:
        held, prompt = cached(live, chat("Tell me about something else: which day is it?"))
        assert held == tokens // PAGE * PAGE
        assert 100 < tokens < prompt
        other, _ = cached(live, chat("Is it warm in Rome?", system="Be brief."))
        assert other < held
    again = place.warm(json.dumps(chat("Is it warm in Rome?")))
    assert f"{tokens % PAGE} of them computed" in again.output


def test_requests_of_every_protocol_are_read(place: Place) -> None:
    ollamas = chat("x", model="m", think=False, options={"temperature": 0})
    lines = [
        {**chat("x"), "model": "any", "unheard-of": 1},
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat("y")},
        ollamas,
        {
            "messages": [{"role": "user", "content": "x"}],
            "system": [{"type": "text", "text": SYSTEM}],
            "tools": [TOOL_OF_ANTHROPIC],
            "max_tokens": 4,
        },
        {"input": "x", "instructions": SYSTEM, "tools": [{"type": "function", **TOOL["function"]}]},
        {"model": "m", "prompt": "once upon a time " * 8, "max_tokens": 4},
        {"model": "m", "prompt": "once upon a time " * 8, "raw": True},
        {"model": "m", "prompt": "x", "system": SYSTEM},
    ]
    done = place.warm("".join(json.dumps(line) + "\n" for line in lines))
    assert done.exit_code == 0, done.output
    said = [line for line in done.output.splitlines() if "stand on disk" in line]
    assert len(said) == 8
    assert len({line.split(": ")[1].split(" tokens")[0] for line in said[:5]}) == 1
    assert place.warm(json.dumps(lines)).output.count("stand on disk") == 8


def test_a_request_is_read_as_an_agent_sent_it(place: Place) -> None:
    body = json.dumps(chat("x"))
    head = f"POST /v1/chat/completions?beta=true HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    sent, plain = place.warm(head + body), place.warm(body)
    assert sent.exit_code == 0, sent.output
    assert sent.output.split(" tokens")[0] == plain.output.split(" tokens")[0]
    assert "there is no JSON" in place.warm(head + body[:-1]).output


def test_all_but_the_last_part_of_a_message_is_kept(place: Place) -> None:
    """As agents send it: what they tell of a project stands in the message of the question."""
    notes = {"type": "text", "text": "The project is written in Python. " * 8}
    parts = [[notes, {"type": "text", "text": question}] for question in ("x", "What is new?")]
    bodies = [{"messages": [{"role": "user", "content": each}], "max_tokens": 1} for each in parts]
    anthropics = [{**body, "system": SYSTEM} for body in bodies]
    lines = f"{json.dumps(bodies[0])}\n{json.dumps(anthropics[0])}\n"
    assert place.warm(lines).exit_code == 0
    with place.live() as live:
        held, prompt = cached(live, bodies[1])
        assert prompt - held < 3 * PAGE
        usage = live.post("/v1/messages", anthropics[1]).json()["usage"]
        assert usage["cache_read_input_tokens"] > 100
        assert usage["input_tokens"] + usage["cache_creation_input_tokens"] < 3 * PAGE


def test_what_a_file_holds_no_longer_may_go(place: Place) -> None:
    """Half of a small store is pinned; what comes fills the rest again and again."""
    small = ("--kv-store-bytes", "400000")
    assert place.warm(json.dumps(chat("x", system="An older agent. " * 8)), *small).exit_code == 0
    assert place.warm(json.dumps(chat("x")), *small).exit_code == 0
    with place.live(*small) as live:
        for number in range(12):
            cached(live, chat("x", system=f"Number {number}. " * 30))
    with place.live(*small) as live:
        held, prompt = cached(live, chat("y"))
        assert held > prompt - 3 * PAGE
        assert cached(live, chat("y", system="An older agent. " * 8))[0] < 100


def test_each_key_of_several_is_warmed(place: Place) -> None:
    keys = ("--api-key", "one", "--api-key", "two")
    assert place.warm(json.dumps(chat("x")), *keys).exit_code == 0
    with place.live(*keys, "--api-key", "three") as live:
        held = [cached(live, chat("y"), Authorization=f"Bearer {key}")[0] for key in keys[1::2]]
        assert min(held) > 100
        assert cached(live, chat("y"), Authorization="Bearer three")[0] == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no request"),
        ("[]", "holds no request"),
        ('{"messages": []}\nnonsense', "line 2: this is no JSON"),
        ('{"nothing": 1}', "none of them"),
        ('[{"messages": [{"role": "user"}]}, {"messages": 5}]', "requests[1]: messages is wrong"),
        ('{"prompt": "a", "suffix": "b"}', "with a suffix"),
        ('{"url": "/nowhere", "body": {}}', "are not known here"),
        (json.dumps(chat("x", system="long " * 9000)), "context"),
    ],
)
def test_what_cannot_be_warmed_is_said_with_its_place(place: Place, text: str, word: str) -> None:
    done = place.warm(text)
    assert done.exit_code != 0
    assert isinstance(done.exception, OckhamError) or done.output
    assert word in f"{done.output}{done.exception}"


def test_a_store_is_needed_and_must_be_free(place: Place) -> None:
    args = ["warm", str(place.model), "--from", str(place.directory / "requests")]
    assert "needs --kv-store" in f"{CliRunner().invoke(cli, args).output}"
    with place.live():
        done = place.warm(json.dumps(chat("x")))
    assert "cannot be used, so nothing is kept" in f"{done.output}{done.exception}"
