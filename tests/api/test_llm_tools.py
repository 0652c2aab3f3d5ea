"""Tools in `LLM.chat` and `AsyncLLM.chat`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ockham import LLM, AsyncLLM, SamplingParams
from ockham.core.errors import InvalidRequest
from ockham.core.outputs import Reply

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "mark",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer"}},
                "required": ["colour"],
            },
        },
    }
]
TALK = [{"role": "user", "content": "Mark it red."}]
PARAMS = SamplingParams(temperature=0, max_tokens=120)


def check(reply: Reply | None) -> None:
    assert reply is not None
    assert reply.content is None
    for call in reply.tool_calls:
        assert call.name == "mark"
        assert json.loads(call.arguments)["colour"] in ("red", "blue")
    assert reply.tool_calls


def test_a_required_call_is_in_the_reply() -> None:
    with LLM("lab") as llm:
        [output] = llm.chat(
            TALK, PARAMS, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
        )
        check(output.outputs[0].reply)
        [plain] = llm.chat(TALK, PARAMS)
        assert plain.outputs[0].reply == Reply(content=plain.outputs[0].text)
        with pytest.raises(InvalidRequest, match="two tools"):
            llm.chat(TALK, PARAMS, tools=TOOLS * 2)


async def _last(llm: AsyncLLM) -> Any:
    last = None
    async for output in llm.chat(
        TALK, PARAMS, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    ):
        last = output
    return last


def test_the_last_output_of_an_asynchronous_chat_has_the_reply() -> None:
    async def work() -> Any:
        async with AsyncLLM("lab") as llm:
            return await _last(llm)

    check(asyncio.run(work()).outputs[0].reply)
