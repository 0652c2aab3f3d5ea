"""What answers look like: Anthropic's objects and events."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ockham.api.server.sse import event
from ockham.api.server.timings import Progress, Report

SIGNATURE = "ockham"
"""Of every thought: clients send it back with the thought, and nobody here looks at it."""


class TextBlock(msgspec.Struct, tag="text"):
    text: str = ""
    citations: None = None


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    thinking_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """The prompt has `input_tokens`, `cache_creation_input_tokens` and `cache_read_input_tokens`
    together."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET
    service_tier: str = "standard"


class Message(msgspec.Struct, tag="message", kw_only=True):
    """`warnings` and `ockham` are not Anthropic's."""

    id: str
    role: str = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage
    warnings: list[str] | UnsetType = UNSET
    ockham: Report | UnsetType = UNSET


class TextDelta(msgspec.Struct, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, tag="input_json_delta"):
    partial_json: str


class MessageStart(msgspec.Struct, tag="message_start"):
    message: Message


class BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: ContentBlock


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class Stopped(msgspec.Struct):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: Stopped
    usage: Usage
    warnings: list[str] | UnsetType = UNSET
    ockham: Report | UnsetType = UNSET


class MessageStop(msgspec.Struct, tag="message_stop"):
    pass


class Ping(msgspec.Struct, tag="ping"):
    """A sign of life; with how far the prompt has been read, if that is asked for."""

    prompt_progress: Progress | UnsetType = UNSET


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping


class TokenCount(msgspec.Struct):
    input_tokens: int


def told(happened: Event) -> bytes:
    """An event, under the name of its type."""
    return event(msgspec.json.encode(happened), str(type(happened).__struct_config__.tag))
