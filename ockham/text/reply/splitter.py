"""What answers are split into, and what every splitter of answers does with it."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ockham.core.outputs import Reply, ToolCall

MOST_WARNINGS = 8
CUT = "length"
"""The finish reason of an answer that had no room to end."""


class CallDelta(msgspec.Struct):
    """What is new of the call number `index`. It has a name and an id where the call begins."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ReplyDelta(msgspec.Struct):
    """What is new of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = []

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def add(self, later: ReplyDelta) -> None:
        """Take in what came after."""
        self.content += later.content
        self.reasoning += later.reasoning
        for call in later.calls:
            if self.calls and self.calls[-1].index == call.index:
                self.calls[-1].arguments += call.arguments
            else:
                self.calls.append(call)


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    place: int
    """How many characters of content stand before it."""
    space: str
    """White space between these and it."""
    arguments: list[str] = field(default_factory=list)
    raw: str | None = None
    """The text that could not be read as a call, after it began like one."""


class Splitter(ABC):
    """Splits one answer. `feed` it the text as it comes, then `finish`; what these return adds up
    to the answer. `reply` is the whole of it. A subclass reads, and tells what it reads by
    `say`, `think`, `begin`, `arguments` and `end`."""

    def __init__(self, *, id_length: int | None, calls: bool) -> None:
        """`id_length` is that of a call's id, if it is not ours to choose; `calls`: whether calls
        are looked for."""
        self.thoughts: list[tuple[int, int]] = []
        """Where thoughts with their marks stand in the answer, in characters."""
        self.warnings: list[str] = []
        self._id_length = id_length
        self._holds_space = calls
        self._calls: list[_Call] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._delta = ReplyDelta()
        self._length = 0
        self._space = ""
        self._fresh = False
        self._open = False
        self._thinking_since: int | None = None

    @abstractmethod
    def feed(self, text: str) -> ReplyDelta:
        """What is new with the next piece of the answer."""

    @abstractmethod
    def finish(self, *, cut: bool = False) -> ReplyDelta:
        """What was held back, at the answer's end. Nothing may be fed after.

        `cut`: the model had not ended, so that what the answer ends with may be a part of a mark.
        That is no text, and is left out.
        """

    @property
    @abstractmethod
    def position(self) -> int:
        """How many characters of the answer have been read."""

    @property
    def thinking(self) -> bool:
        """Whether the answer is within a thought."""
        return self._thinking_since is not None

    @property
    def has_calls(self) -> bool:
        """Whether a call has come that could be read, or begins to come."""
        return any(call.raw is None for call in self._calls)

    def unread_call(self, index: int) -> str | None:
        """The text of a call that could not be read to its end, though it had begun; else None."""
        return self._calls[index].raw

    def reply(self) -> Reply:
        """The whole answer. Calls that could not be read to their end are text in it."""
        content, at, said = [], 0, "".join(self._content)
        for call in self._calls:
            if call.raw is not None:
                content += [said[at : call.place], call.raw]
                at = call.place
        text = "".join([*content, said[at:]])
        calls = [
            ToolCall(call.id, call.name, "".join(call.arguments))
            for call in self._calls
            if call.raw is None
        ]
        return Reply(
            content=None if calls and not text else text,
            reasoning="".join(self._reasoning) or None,
            tool_calls=calls,
            warnings=self.warnings,
        )

    # -- what is read --------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        number = uuid.uuid4().hex
        call_id = number[: self._id_length] if self._id_length else f"call_{number[:24]}"
        self._calls.append(_Call(call_id, name, self._length, self._space))
        self._space = ""
        self._open = True
        self._delta.calls.append(CallDelta(len(self._calls) - 1, call_id, name))

    def arguments(self, text: str) -> None:
        call, deltas = self._calls[-1], self._delta.calls
        call.arguments.append(text)
        if deltas and deltas[-1].index == len(self._calls) - 1:
            deltas[-1].arguments += text
        else:
            deltas.append(CallDelta(len(self._calls) - 1, arguments=text))

    def end(self) -> None:
        """The call is complete."""
        self._open = False

    def warn(self, sentence: str) -> None:
        if len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(sentence)

    def say(self, text: str) -> None:
        """Content. White space is held back until it is known that no call follows."""
        if self._fresh:
            text = text.lstrip()
            if not text:
                return
            self._fresh = False
        if self._holds_space:
            text = self._space + text
            kept = text.rstrip()
            self._space, text = text[len(kept) :], kept
        self._write(text)

    def think(self, text: str) -> None:
        """Reasoning, without the white space around it."""
        if self._fresh:
            text = text.lstrip()
            if not text:
                return
            self._fresh = False
        text = self._space + text
        kept = text.rstrip()
        self._space, text = text[len(kept) :], kept
        if text:
            self._reasoning.append(text)
            self._delta.reasoning += text

    def begin_thought(self) -> None:
        self._thinking_since = self.position
        self._fresh, self._space = not self._reasoning, "\n" if self._reasoning else ""

    def end_thought(self) -> None:
        if self._thinking_since is not None:
            self.thoughts.append((self._thinking_since, self.position))
            self._thinking_since = None
            self._fresh, self._space = True, ""

    def unread(self, raw: str) -> None:
        """Give back as text what could not be read as a call."""
        if self._open:
            self._calls[-1].raw, self._open = self._calls[-1].space + raw, False
        else:
            self.say(raw)

    def end_answer(self) -> None:
        """The white space that no call followed is text."""
        self.end_thought()
        space, self._space = self._space, ""
        self._write(space)

    def _write(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._length += len(text)
            self._delta.content += text

    def _taken(self) -> ReplyDelta:
        delta, self._delta = self._delta, ReplyDelta()
        return delta


def joined(deltas: Sequence[ReplyDelta]) -> Reply:
    """What a reader of a stream makes of its parts."""
    calls: list[ToolCall] = []
    for delta in deltas:
        for call in delta.calls:
            if call.name is not None:
                calls.append(ToolCall(call.id or "", call.name, ""))
            calls[call.index].arguments += call.arguments
    content = "".join(delta.content for delta in deltas)
    return Reply(
        content=None if calls and not content else content,
        reasoning="".join(delta.reasoning for delta in deltas) or None,
        tool_calls=calls,
    )
