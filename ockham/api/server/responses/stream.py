"""The items of an answer as they come, and the events that tell of them.

An item is added, grows, and is done; then the next one begins. Whole answers are made in the same
way, so that both have the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from ockham.api.server.responses.items import sealed
from ockham.api.server.responses.tools import InputReader, Toolbox
from ockham.api.server.responses.wire import (
    CustomToolCall,
    Event,
    FunctionCall,
    Item,
    Message,
    OutputText,
    Part,
    ReasoningText,
    SummaryText,
    Thought,
)
from ockham.api.server.serving import new_request_id
from ockham.api.server.sse import event
from ockham.api.server.wire import ChosenLogprob
from ockham.text.reply.splitter import CallDelta


class Events:
    """Writes events and counts them; nothing if `silent`."""

    def __init__(self, *, silent: bool = False) -> None:
        self.count = 0
        self._silent = silent

    def __call__(self, kind: str, **fields: Any) -> bytes:
        if self._silent:
            return b""
        made = Event(type=kind, sequence_number=self.count, **fields)
        self.count += 1
        return event(msgspec.json.encode(made), kind)


class _Message:
    """Text that is written."""

    def __init__(self, events: Events, index: int) -> None:
        self._events, self._index = events, index
        self.id = f"msg_{new_request_id()}"
        self._text: list[str] = []
        self._logprobs: list[ChosenLogprob] = []

    def begin(self) -> Iterator[bytes]:
        yield self._tell("output_item.added", item=self.item("in_progress", content=[]))
        yield self._tell("content_part.added", **self._place, part=OutputText(text=""))

    def say(self, text: str, logprobs: list[ChosenLogprob]) -> Iterator[bytes]:
        self._text.append(text)
        self._logprobs += logprobs
        yield self._tell("output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def end(self, status: str) -> Iterator[bytes]:
        item = self.item(status)
        (part,) = item.content
        yield self._tell("output_text.done", **self._place, text=part.text, logprobs=part.logprobs)
        yield self._tell("content_part.done", **self._place, part=part)
        yield self._tell("output_item.done", item=item)

    def item(self, status: str, content: list[OutputText] | None = None) -> Message:
        if content is None:
            content = [OutputText(text="".join(self._text), logprobs=self._logprobs)]
        return Message(id=self.id, status=status, content=content)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "content_index": 0}

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return self._events(f"response.{kind}", output_index=self._index, **fields)


class _Thought:
    """A thought that is thought, as content or as the summary of itself."""

    def __init__(self, events: Events, index: int, *, summary: bool, seals: bool) -> None:
        self._events, self._index = events, index
        self._summary, self._seals = summary, seals
        self.id = f"rs_{new_request_id()}"
        self._text: list[str] = []

    def begin(self) -> Iterator[bytes]:
        yield self._tell("output_item.added", item=self.item("in_progress", begun=False))
        yield self._tell(f"{self._part_kind}.added", **self._place, part=self._part(""))

    def think(self, text: str) -> Iterator[bytes]:
        self._text.append(text)
        yield self._tell(f"{self._text_kind}.delta", **self._place, delta=text)

    def end(self, status: str) -> Iterator[bytes]:
        text = "".join(self._text)
        yield self._tell(f"{self._text_kind}.done", **self._place, text=text)
        yield self._tell(f"{self._part_kind}.done", **self._place, part=self._part(text))
        yield self._tell("output_item.done", item=self.item(status))

    def item(self, status: str, *, begun: bool = True) -> Thought:
        text = "".join(self._text)
        shown = [text] if begun else []
        return Thought(
            id=self.id,
            status=status,
            summary=[SummaryText(text=each) for each in shown] if self._summary else [],
            content=UNSET if self._summary else [ReasoningText(text=each) for each in shown],
            encrypted_content=sealed(text) if self._seals and begun else UNSET,
        )

    def _part(self, text: str) -> Part:
        return SummaryText(text=text) if self._summary else ReasoningText(text=text)

    @property
    def _part_kind(self) -> str:
        return "reasoning_summary_part" if self._summary else "content_part"

    @property
    def _text_kind(self) -> str:
        return "reasoning_summary_text" if self._summary else "reasoning_text"

    @property
    def _place(self) -> dict[str, Any]:
        number = "summary_index" if self._summary else "content_index"
        return {"item_id": self.id, number: 0}

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return self._events(f"response.{kind}", output_index=self._index, **fields)


class _Call:
    """A call of a function, or of a custom tool."""

    def __init__(self, events: Events, index: int, call: CallDelta, tools: Toolbox) -> None:
        self._events, self._index = events, index
        self.number = call.index
        self._call_id = call.id or ""
        self._tool = tools[call.name or ""]
        self.id = f"{'ctc' if self._tool.custom else 'fc'}_{new_request_id()}"
        self._arguments: list[str] = []
        self._input = InputReader()

    def begin(self) -> Iterator[bytes]:
        yield self._tell("output_item.added", item=self.item("in_progress", begun=False))

    def add(self, arguments: str) -> Iterator[bytes]:
        if not arguments:
            return
        if self._tool.custom:
            text = self._input.feed(arguments)
            if text:
                yield self._tell("custom_tool_call_input.delta", item_id=self.id, delta=text)
        else:
            self._arguments.append(arguments)
            yield self._tell("function_call_arguments.delta", item_id=self.id, delta=arguments)

    def end(self, status: str) -> Iterator[bytes]:
        item = self.item(status)
        if isinstance(item, CustomToolCall):
            rest = self._input.finish()
            if rest:
                yield self._tell("custom_tool_call_input.delta", item_id=self.id, delta=rest)
            yield self._tell("custom_tool_call_input.done", item_id=self.id, input=item.input)
        else:
            yield self._tell(
                "function_call_arguments.done",
                item_id=self.id,
                name=item.name,
                arguments=item.arguments,
            )
        yield self._tell("output_item.done", item=item)

    def item(self, status: str, *, begun: bool = True) -> FunctionCall | CustomToolCall:
        known: dict[str, Any] = {
            "id": self.id,
            "status": status,
            "call_id": self._call_id,
            "name": self._tool.name,
            "namespace": self._tool.namespace or UNSET,
        }
        if self._tool.custom:
            return CustomToolCall(**known, input=self._input.text if begun else "")
        return FunctionCall(**known, arguments="".join(self._arguments))

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return self._events(f"response.{kind}", output_index=self._index, **fields)


class Items:
    """Makes the items of one answer. `done` are those that are finished and belong to it."""

    def __init__(
        self,
        events: Events,
        tools: Toolbox,
        unread: Callable[[int], str | None],
        *,
        summary: bool,
        seals: bool,
    ) -> None:
        """`unread` gives the text of a call that turned out to be none, by its number; `summary`:
        thoughts are told as summaries; `seals`: they are told as `encrypted_content` too."""
        self.done: list[Item] = []
        self._events, self._tools, self._unread = events, tools, unread
        self._summary, self._seals = summary, seals
        self._open: _Message | _Thought | _Call | None = None
        self._count = 0

    @property
    def empty(self) -> bool:
        """Whether nothing has come."""
        return not self._count

    @property
    def speaking(self) -> bool:
        """Whether text is being written."""
        return isinstance(self._open, _Message)

    def think(self, text: str) -> Iterator[bytes]:
        """More of a thought."""
        if not isinstance(self._open, _Thought):
            yield from self.close()
            self._open = _Thought(
                self._events, self._next(), summary=self._summary, seals=self._seals
            )
            yield from self._open.begin()
        yield from self._open.think(text)

    def say(self, text: str, logprobs: list[ChosenLogprob]) -> Iterator[bytes]:
        """More of the text; empty for an answer that says nothing."""
        if not isinstance(self._open, _Message):
            yield from self.close()
            if not isinstance(self._open, _Message):  # closing may have begun one
                self._open = _Message(self._events, self._next())
                yield from self._open.begin()
        if text or logprobs:
            yield from self._open.say(text, logprobs)

    def call(self, call: CallDelta) -> Iterator[bytes]:
        """More of a call."""
        if not isinstance(self._open, _Call) or self._open.number != call.index:
            yield from self.close()
            yield from self._finish("completed")  # the text of a call that was none
            self._open = _Call(self._events, self._next(), call, self._tools)
            yield from self._open.begin()
        yield from self._open.add(call.arguments)

    def close(self) -> Iterator[bytes]:
        """The item that is open is complete. What began like a call and is none is done as
        incomplete, is no part of the answer, and its text is."""
        raw = self._unread(self._open.number) if isinstance(self._open, _Call) else None
        if raw is None:
            yield from self._finish("completed")
            return
        assert self._open is not None
        yield from self._open.end("incomplete")
        self._open = None
        yield from self.say(raw, [])

    def end(self, status: str) -> Iterator[bytes]:
        """The answer is finished."""
        if isinstance(self._open, _Call):
            yield from self.close()
        yield from self._finish(status)

    def _finish(self, status: str) -> Iterator[bytes]:
        if self._open is not None:
            self.done.append(self._open.item(status))
            yield from self._open.end(status)
            self._open = None

    def _next(self) -> int:
        self._count += 1
        return self._count - 1
