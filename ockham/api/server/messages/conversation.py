"""Anthropic's messages as those of chat completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ockham.api.server.messages.blocks import Block, text_of, texts_of
from ockham.api.server.messages.noise import is_countdown, without_countdown, without_header
from ockham.api.server.protocol import ChatMessage
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message. Answers can be sent back as they came."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


@dataclass(slots=True)
class _Draft:
    """A message of chat completions that more may be added to."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    name: str | None = None
    call_id: str | None = None

    def message(self) -> ChatMessage:
        text = "\n".join(each for each in self.texts if each)
        return ChatMessage(
            role=self.role,
            content=text if text or not self.calls else None,
            name=self.name,
            tool_calls=self.calls or None,
            tool_call_id=self.call_id,
            reasoning_content="\n".join(filter(None, self.thoughts)) or None,
        )


class Conversation:
    """Reads a conversation. `messages` are those of chat completions, `prefill` is the text that
    the answer goes on from, `skipped` says which blocks were left out.

    A message of several blocks becomes several messages where it holds results of tools. Messages
    of one role that follow one another become one, since chat templates expect turns. A message of
    the role `system` between others stays where it is, as a reminder in the user's turn: moved to
    the front, it would change the prefix of all that was computed before.
    """

    def __init__(self, *, plain: bool) -> None:
        """`plain`: what changes with each request and says nothing is left out (`noise`)."""
        self.prefill = ""
        self.skipped: list[str] = []
        self._plain = plain
        self._drafts: list[_Draft] = []
        self._tools: dict[str, str] = {}
        """Which tool each call was of, by the call's id."""

    def read_system(self, system: str | list[Block] | None) -> None:
        """Take in the system prompt. Raises `InvalidRequest`."""
        texts = texts_of(system, "system", self.skipped)
        if texts and self._plain:
            texts[0] = without_header(texts[0])
        self._add_system(texts)

    def read_messages(self, messages: list[Message]) -> None:
        """Take in the messages that follow. Raises `InvalidRequest`."""
        for index, message in enumerate(messages):
            where = f"messages[{index}].content"
            blocks = _blocks(message.content)
            if message.role == "system":
                self._add_system(texts_of(message.content, where, self.skipped))
            elif message.role == "user":
                self._read_user(blocks, where)
            elif index + 1 < len(messages) or any(block.type == "tool_use" for block in blocks):
                self._read_assistant(blocks, where)
            else:
                thoughts = ("thinking", "redacted_thinking")
                said = [block for block in blocks if block.type not in thoughts]
                self.prefill = "".join(texts_of(said, where, self.skipped))

    @property
    def messages(self) -> list[ChatMessage]:
        """What has been read."""
        return [draft.message() for draft in self._drafts]

    def _add_system(self, texts: list[str]) -> None:
        if self._plain:
            texts = [without_countdown(text) for text in texts]
        text = "\n".join(each for each in texts if each)
        if not text:
            return
        if not self._drafts or self._drafts[-1].role == "system":
            self._draft("system").texts.append(text)
        else:
            reminder = f"<system-reminder>\n{text}\n</system-reminder>"
            self._draft("user").texts.append(reminder)

    def _draft(self, role: str) -> _Draft:
        """The last message if it is of this role, else a new one."""
        if not self._drafts or self._drafts[-1].role != role:
            self._drafts.append(_Draft(role))
        return self._drafts[-1]

    def _read_user(self, blocks: list[Block], where: str) -> None:
        for number, block in enumerate(blocks):
            place = f"{where}[{number}]"
            if block.type == "tool_result":
                self._drafts.append(self._result(block, place))
                continue
            text = text_of(block, place)
            if text is None:
                self._skip(block, place)
            elif not (self._plain and is_countdown(text)):
                self._draft("user").texts.append(text)
        if not blocks:
            self._draft("user")

    def _result(self, block: Block, where: str) -> _Draft:
        texts = texts_of(block.content, f"{where}.content", self.skipped)
        text = "\n".join(texts)
        if block.is_error and not text.lower().startswith(("error", "<tool_use_error")):
            text = f"Error: {text}" if text else "Error"
        name = self._tools.get(block.tool_use_id or "")
        return _Draft("tool", [text], name=name, call_id=block.tool_use_id)

    def _read_assistant(self, blocks: list[Block], where: str) -> None:
        draft = self._draft("assistant")
        for number, block in enumerate(blocks):
            place = f"{where}[{number}]"
            if block.type == "thinking":
                draft.thoughts.append(block.thinking or "")
            elif block.type == "tool_use":
                draft.calls.append(self._call(block, place))
            elif block.type != "redacted_thinking":
                text = text_of(block, place)
                if text is None:
                    self._skip(block, place)
                else:
                    draft.texts.append(text)

    def _call(self, block: Block, where: str) -> dict[str, Any]:
        if not block.id or not block.name:
            missing = "name" if block.id else "id"
            raise InvalidRequest(
                f"{where}.{missing} is required and is missing.", f"{where}.{missing}"
            )
        self._tools[block.id] = block.name
        function = {"name": block.name, "arguments": block.input or {}}
        return {"id": block.id, "type": "function", "function": function}

    def _skip(self, block: Block, where: str) -> None:
        self.skipped.append(f"{where} ({shown(block.type)})")


def _blocks(content: str | list[Block]) -> list[Block]:
    return [Block(type="text", text=content)] if isinstance(content, str) else content
