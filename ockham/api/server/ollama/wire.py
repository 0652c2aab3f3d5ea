"""What Ollama's answers look like. A field that is `UNSET` is left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ockham.api.server.timings import Progress, Report
from ockham.api.server.wire import ChatLogprobs
from ockham.core.outputs import ToolCall


class CalledFunction(msgspec.Struct):
    """`arguments` are an object."""

    index: int
    name: str
    arguments: msgspec.Raw


class ToolCalled(msgspec.Struct):
    id: str
    function: CalledFunction


class Said(msgspec.Struct, kw_only=True):
    """A message of the model, or what is new of it."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCalled] | UnsetType = UNSET


class Alternative(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class Probability(msgspec.Struct):
    """Of a token of the answer; `top_logprobs` are the likeliest ones, if asked for."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative] | UnsetType = UNSET


class Answered(msgspec.Struct, kw_only=True):
    """One object of an answer, which has one or is a stream of them. Durations are in nanoseconds.

    The last one has `done` and what the answer took. `prompt_eval_count` is the whole prompt, of
    which `prompt_cached_count` tokens were not computed again; Ollama tells the first only.
    `warnings` is not Ollama's either, nor are `prompt_progress` and `ockham`, which are there where
    they are asked for.
    """

    model: str
    created_at: str
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_cached_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[Probability] | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET
    ockham: Report | UnsetType = UNSET


class Chatted(Answered, kw_only=True):
    message: Said


class Generated(Answered, kw_only=True):
    """`context` are the token ids of the prompt and of the answer."""

    response: str = ""
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


def now() -> str:
    return stamp(datetime.now(UTC).timestamp())


def stamp(seconds: float) -> str:
    """A time in seconds of the epoch, as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def called(call: ToolCall, index: int) -> ToolCalled:
    """A call as it is told. Its arguments, an object in JSON, come on one line: so must each object
    of a stream."""
    arguments = msgspec.json.format((call.arguments or "{}").encode(), indent=-1)
    return ToolCalled(call.id, CalledFunction(index, call.name, msgspec.Raw(arguments)))


def probabilities(logprobs: ChatLogprobs) -> list[Probability]:
    """Chat completions' log probabilities in Ollama's shape, which is flat."""
    return [
        Probability(
            each.token,
            each.logprob,
            each.bytes,
            [Alternative(a.token, a.logprob, a.bytes) for a in each.top_logprobs] or UNSET,
        )
        for each in logprobs.content
    ]


def lines(answers: Sequence[Any]) -> bytes:
    """Objects of a stream, one on each line."""
    return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)
