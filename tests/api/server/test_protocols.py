"""What every protocol of chats has from the house, seen through one that is made up here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ockham.api.async_llm import AsyncLLM
from ockham.api.server import app as application
from ockham.api.server.dialect import Dialect
from ockham.api.server.gate import Gate
from ockham.api.server.metrics import Metrics
from ockham.api.server.protocol import ChatMessage, ChatRequest
from ockham.api.server.reply_answer import Ending, ReplyAnswer
from ockham.api.server.serving import read_chat
from ockham.api.server.settings import ServerSettings
from ockham.api.server.turn import take_turn
from ockham.core.outputs import CompletionOutput, Reply
from ockham.core.structured_outputs import StructuredOutputsParams
from ockham.text.reply.splitter import ReplyDelta
from tests.helpers.families import FAMILIES

SAID = '<think>\nwell\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/parrot/ask`."""

    text: str
    say: str
    heat: float | None = None
    live: bool | None = None

    def chat(self) -> ChatRequest:
        return ChatRequest(
            messages=[ChatMessage(role="user", content=self.text)],
            temperature=self.heat,
            stream=self.live,
            tools=[NOW],
            structured_outputs=StructuredOutputsParams(choice=[self.say]),
        )


class Parrot(ReplyAnswer):
    prefix = "parrot"
    media_type = "application/x-ndjson"
    alive = None

    def whole(self, reply: Reply, ending: Ending) -> bytes:
        calls = [call.name for call in reply.tool_calls]
        return msgspec.json.encode([reply.reasoning, reply.content, calls, ending.finish_reason])

    def begin(self) -> Iterator[bytes]:
        yield b'["begin"]\n'

    def tell(self, new: ReplyDelta, choice: CompletionOutput) -> Iterator[bytes]:
        if new:
            calls = [call.name for call in new.calls if call.name]
            yield msgspec.json.encode([new.reasoning, new.content, calls]) + b"\n"

    def end(self, ending: Ending) -> Iterator[bytes]:
        usage = self.meter.usage(final=True)
        yield msgspec.json.encode([ending.finish_reason, usage.completion_tokens]) + b"\n"


async def ask(http: Request) -> Response:
    question, chat = await read_chat(http, Question)
    assert question.text
    turn = await take_turn(http, chat, {"temperature": "heat", "messages": "text"})
    return await Parrot(http, turn).respond(turn.job)


@pytest.fixture
def asked(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends bodies to the route, one after the other, and gives the responses."""
    template = tmp_path / "template.jinja"
    template.write_text(FAMILIES["hermes"].template)
    route = Route("/parrot/ask", ask, methods=["POST"])
    monkeypatch.setattr(application, "ROUTES", (*application.ROUTES, route))
    squawk = Dialect("/parrot", lambda error, name: json.dumps([str(error), name]).encode())
    monkeypatch.setattr(application, "DIALECTS", (squawk,))

    async def send(bodies: list[dict[str, Any]]) -> list[httpx.Response]:
        settings: dict[str, Any] = {
            "chat_template": str(template),
            "kv_cache_memory_bytes": 1 << 24,
            "enable_in_reasoning": True,  # so that what it is to say may hold a thought
        }
        async with AsyncLLM(str(tiny), **settings) as llm:
            server = ServerSettings(access_log=False, api_keys=("key",))
            app = application.build_app(llm, server, Gate(8, 8), Metrics("tiny"))
            transport = httpx.ASGITransport(app)
            headers = {"x-api-key": "key", "x-request-id": "7"}
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                return [
                    await client.post("/parrot/ask", json=body, headers=headers | body.pop("h", {}))
                    for body in bodies
                ]

    return lambda *bodies: asyncio.run(send(list(bodies)))


def test_a_protocol_is_only_translation(asked: Any) -> None:
    question = {"text": "x", "say": SAID}
    whole, live, odd, hot, keyless = asked(
        {**question},
        {**question, "live": True},
        {**question, "unheard-of": 1},
        {**question, "heat": -1},
        {**question, "h": {"x-api-key": "no"}},
    )
    assert whole.json() == ["well", None, ["now"], "tool_calls"]
    lines = [json.loads(line) for line in live.text.splitlines()]
    assert live.headers["content-type"] == "application/x-ndjson"
    assert lines[0] == ["begin"]
    assert "".join(line[0] for line in lines[1:-1]) == "well"
    assert [name for line in lines[1:-1] for name in line[2]] == ["now"]
    assert lines[-1][0] == "tool_calls"
    assert lines[-1][1] > 10
    assert odd.json() == whole.json()
    assert odd.headers["x-ockham-ignored-fields"] == "unheard-of"
    assert hot.status_code == 400
    sentence, name = hot.json()
    assert sentence.startswith("heat must")
    assert name == "7"
    assert keyless.status_code == 401
    assert "API key" in keyless.json()[0]
