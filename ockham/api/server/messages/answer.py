"""From the outputs of a job to Anthropic's message, or the events of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request

from ockham.api.server.messages.dialect import error_event
from ockham.api.server.messages.request import MessagesBody, MessagesChat
from ockham.api.server.messages.wire import (
    SIGNATURE,
    BlockDelta,
    BlockStart,
    BlockStop,
    CacheCreation,
    ContentBlock,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    OutputTokensDetails,
    Ping,
    SignatureDelta,
    Stopped,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
    told,
)
from ockham.api.server.reply_answer import Ending, ReplyAnswer
from ockham.api.server.serving import request_id
from ockham.api.server.timings import Progress
from ockham.api.server.turn import Turn
from ockham.core.errors import OckhamError
from ockham.core.outputs import CompletionOutput, Reply, ToolCall
from ockham.text.reply.splitter import CallDelta, ReplyDelta


class MessagesAnswer(ReplyAnswer):
    """A message, whole or as events: each block has a start, pieces and a stop."""

    prefix = "msg"
    alive = told(Ping())

    def __init__(
        self,
        http: Request,
        turn: Turn,
        body: MessagesBody,
        chat: MessagesChat,
        marked_tokens: int,
        keep: Callable[[], None],
    ) -> None:
        """`marked_tokens` is how much of the prompt the caller asked to have cached, `keep` what is
        called when the answer is complete."""
        super().__init__(http, turn)
        self.id = f"msg_{request_id(http)}"
        self._body_asked = body
        self._chat = chat
        self._marked_tokens = marked_tokens
        self._keep = keep
        self._index = -1
        self._open: type[ContentBlock] | None = None
        self._calls: list[int] = []

    def whole(self, reply: Reply, ending: Ending) -> bytes:
        generates = self._body_asked.max_tokens != 0
        content = list(self._blocks(reply)) if generates else []
        message = self._message(content, self._usage(generates=generates))
        called = any(isinstance(block, ToolUseBlock) for block in content)
        message.stop_reason, message.stop_sequence = self._stop(ending, called)
        message.warnings = self._warnings(ending) or UNSET
        message.ockham = self.report()
        return msgspec.json.encode(message)

    def begin(self) -> Iterator[bytes]:
        yield told(MessageStart(self._message([], self._usage())))

    def tell(self, new: ReplyDelta, choice: CompletionOutput) -> Iterator[bytes]:
        if new.reasoning:
            yield from self._enter(ThinkingBlock)
            if self._body_asked.shows_thoughts:
                yield told(BlockDelta(self._index, ThinkingDelta(new.reasoning)))
        if new.content:
            yield from self._say(new.content)
        for call in new.calls:
            yield from self._tell_call(call)

    def end(self, ending: Ending) -> Iterator[bytes]:
        for index in self._calls:
            raw = self.unread_call(index)
            if raw is not None:  # what has been sent cannot be taken back
                yield from self._say(raw)
        yield from self._leave()
        reason, sequence = self._stop(ending, ending.finish_reason == "tool_calls")
        yield told(
            MessageDelta(
                Stopped(reason, sequence),
                self._usage(),
                self._warnings(ending) or UNSET,
                self.report(),
            )
        )
        yield told(MessageStop())

    def failed(self, error: OckhamError) -> bytes:
        return error_event(error, request_id(self._http))

    def progressed(self, progress: Progress) -> bytes:
        return told(Ping(progress)) if self._body_asked.return_progress else b""

    def finished(self) -> None:
        self._keep()

    def _message(self, content: list[ContentBlock], usage: Usage) -> Message:
        return Message(id=self.id, model=self.model, content=content, usage=usage)

    def _blocks(self, reply: Reply) -> Iterator[ContentBlock]:
        if reply.reasoning:
            shown = reply.reasoning if self._body_asked.shows_thoughts else ""
            yield ThinkingBlock(shown, SIGNATURE)
        if reply.content:
            yield TextBlock(reply.content)
        for call in reply.tool_calls:
            given = _object(call)
            if given is None:
                yield TextBlock(f"{call.name}({call.arguments})")
            else:
                yield ToolUseBlock(call.id, call.name, given)

    def _enter(self, kind: type[TextBlock] | type[ThinkingBlock]) -> Iterator[bytes]:
        """Begin a block of a kind, unless one is open."""
        if self._open is not kind:
            yield from self._begin_block(kind())

    def _begin_block(self, block: ContentBlock) -> Iterator[bytes]:
        yield from self._leave()
        self._index += 1
        self._open = type(block)
        yield told(BlockStart(self._index, block))

    def _leave(self) -> Iterator[bytes]:
        """End the block that is open."""
        if self._open is None:
            return
        if self._open is ThinkingBlock:
            yield told(BlockDelta(self._index, SignatureDelta(SIGNATURE)))
        yield told(BlockStop(self._index))
        self._open = None

    def _say(self, text: str) -> Iterator[bytes]:
        yield from self._enter(TextBlock)
        yield told(BlockDelta(self._index, TextDelta(text)))

    def _tell_call(self, call: CallDelta) -> Iterator[bytes]:
        if call.name is not None:
            self._calls.append(call.index)
            yield from self._begin_block(ToolUseBlock(call.id or "", call.name))
        if call.arguments:
            yield told(BlockDelta(self._index, InputJsonDelta(call.arguments)))

    def _stop(self, ending: Ending, called: bool) -> tuple[str, str | None]:
        """`stop_reason` and `stop_sequence`."""
        if ending.finish_reason == "length":
            cut = self.turn.clipped
            return ("model_context_window_exceeded" if cut else "max_tokens"), None
        if called:
            return "tool_use", None
        if isinstance(ending.stop_reason, str):
            return "stop_sequence", ending.stop_reason
        return "end_turn", None

    def _warnings(self, ending: Ending) -> list[str]:
        return [*(f"{what} was left out." for what in self._chat.skipped[:8]), *ending.warnings]

    def _usage(self, *, generates: bool = True) -> Usage:
        meter = self.meter
        cached = meter.course.cached_tokens
        created = max(0, self._marked_tokens - cached)
        hour = self._chat.stays_s > 300
        thought = meter.reasoning_tokens
        return Usage(
            input_tokens=meter.prompt_tokens - cached - created,
            cache_creation_input_tokens=created,
            cache_read_input_tokens=cached,
            cache_creation=CacheCreation(0 if hour else created, created if hour else 0),
            output_tokens=meter.course.completion_tokens if generates else 0,
            output_tokens_details=UNSET if thought is None else OutputTokensDetails(thought),
        )


def _object(call: ToolCall) -> dict[str, Any] | None:
    """The arguments of a call, if they are an object."""
    try:
        found = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
