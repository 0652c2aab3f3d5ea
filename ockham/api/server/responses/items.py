"""The items of a conversation, and the messages of a chat that they are."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from ockham.api.server.fields import ANY
from ockham.api.server.protocol import ChatMessage
from ockham.api.server.responses.tools import flat_name
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_NOT_TEXT = ("input_image", "input_audio", "input_file", "image_url", "computer_screenshot")
_SEALED = "thought:"
"""What the `encrypted_content` of a thought begins with, before its text in base 64."""


class InputItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One item of a conversation. Items of earlier answers can be sent back as they came.

    A `message` needs `role` and `content`; a `function_call` `call_id`, `name` and `arguments`, a
    `custom_tool_call` the same with `input`; their outputs `call_id` and `output`; a `reasoning`
    has `content`, `summary` or `encrypted_content`.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("annotations", "logprobs", "caller", "created_by", "end_turn", "async"), (ANY,)
    )

    type: str | None = None
    """`message` where it is left out and there is a role."""
    id: str | None = None
    """Changes nothing: whole items are sent."""
    status: str | None = None
    phase: str | None = None
    """Changes nothing."""
    role: str | None = None
    """`user`, `assistant`, `system` or `developer`."""
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    """Of a call of a tool that was offered in a namespace."""
    arguments: str | None = None
    """JSON text."""
    input: str | None = None
    output: str | list[dict[str, Any]] | None = None
    summary: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


class Conversation:
    """Turns items into messages. `places` has for each message where its last item stands in the
    request; `skipped` the items that say nothing here."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self.places: list[str] = []
        self.skipped: list[str] = []
        self._instructions: list[str] = []
        self._names: dict[str, str] = {}
        """Id of a call -> name of the tool."""

    def instruct(self, instructions: str) -> None:
        """What goes before all items."""
        self._instructions.append(instructions)

    def add(self, item: InputItem, where: str) -> None:
        """The next item. Raises `InvalidRequest`."""
        kind = item.type or ("message" if item.role is not None else None)
        match kind:
            case "message":
                self._message(item, where)
            case "function_call":
                self._call(item, where, _needed(item.arguments, "arguments", where) or "{}")
            case "custom_tool_call":
                text = _needed(item.input, "input", where)
                self._call(item, where, msgspec.json.encode({"input": text}).decode())
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, where)
            case "reasoning":
                self._reasoning(item, where)
            case "item_reference" | "compaction":
                raise InvalidRequest(
                    f"{where} is of the type {kind!r}, which only the server that made it can read:"
                    " this server keeps nothing of earlier requests. Send the items themselves, as "
                    "clients do that are set to store=false.",
                    where,
                )
            case None:
                raise InvalidRequest(f"{where}.type is required and is missing.", f"{where}.type")
            case _:
                self.skipped.append(f"{where} ({shown(kind)[1:-1]})")

    def _append(self, message: ChatMessage, where: str) -> None:
        self.messages.append(message)
        self.places.append(where)

    def _message(self, item: InputItem, where: str) -> None:
        role = _needed(item.role, "role", where)
        if role not in ("user", "assistant", "system", "developer"):
            raise InvalidRequest(
                f"{where}.role must be one of user, assistant, system, developer, got "
                f"{shown(role)}.",
                f"{where}.role",
            )
        texts = _texts(_needed(item.content, "content", where), f"{where}.content")
        if role == "assistant":
            message = self._assistant(where, fresh=lambda found: found.content is not None)
            message.content = "".join(texts)
        elif role != "user" and not self.messages:
            # Many templates know a system message at the beginning, and no other.
            self._instructions += texts
        else:
            self._append(ChatMessage(role=role, content=_content(texts)), where)

    def _assistant(self, where: str, fresh: Any) -> ChatMessage:
        """The message of the assistant that is being put together; a new one where the last has
        calls, is of somebody else, or is `fresh`."""
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or last.tool_calls or fresh(last):
            last = ChatMessage(role="assistant")
            self._append(last, where)
        self.places[-1] = where
        return last

    def _call(self, item: InputItem, where: str, arguments: str) -> None:
        call_id = _needed(item.call_id, "call_id", where)
        name = flat_name(item.namespace, _needed(item.name, "name", where))
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant":
            last = ChatMessage(role="assistant")
            self._append(last, where)
        self.places[-1] = where
        self._names[call_id] = name
        function = {"name": name, "arguments": arguments}
        if last.tool_calls is None:
            last.tool_calls = []
        last.tool_calls.append({"id": call_id, "type": "function", "function": function})

    def _output(self, item: InputItem, where: str) -> None:
        call_id = _needed(item.call_id, "call_id", where)
        content = _content(_texts(item.output or "", f"{where}.output"))
        name = self._names.get(call_id)
        message = ChatMessage(role="tool", content=content, tool_call_id=call_id, name=name)
        self._append(message, where)

    def _reasoning(self, item: InputItem, where: str) -> None:
        thought = "".join(_texts(item.content or "", f"{where}.content")) or unsealed(
            item.encrypted_content
        )
        thought = thought or "\n\n".join(_texts(item.summary or [], f"{where}.summary"))
        message = self._assistant(where, fresh=lambda found: True)
        message.reasoning_content = thought

    def close(self) -> list[ChatMessage]:
        """The messages, to which nothing is added any more. A thought without an answer is an empty
        answer."""
        if self._instructions:
            said = "\n\n".join(self._instructions)
            self.messages.insert(0, ChatMessage(role="system", content=said))
            self.places.insert(0, "instructions")
        for message in self.messages:
            if message.role == "assistant" and message.content is None and not message.tool_calls:
                message.content = ""
        return self.messages


def sealed(thought: str) -> str:
    """A thought as the `encrypted_content` by which it comes back. Nothing is hidden by it."""
    return _SEALED + base64.b64encode(thought.encode()).decode()


def unsealed(content: str | None) -> str:
    """The thought in `encrypted_content`; empty for what another server sealed."""
    if content is None or not content.startswith(_SEALED):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_SEALED), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _needed(value: Any, name: str, where: str) -> Any:
    if value is None:
        raise InvalidRequest(f"{where}.{name} is required and is missing.", f"{where}.{name}")
    return value


def _content(texts: Sequence[str]) -> str | list[dict[str, Any]]:
    if len(texts) == 1:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts]


def _texts(content: str | Sequence[dict[str, Any]], where: str) -> list[str]:
    """The texts of a content. Raises `InvalidRequest` for parts that are none."""
    if isinstance(content, str):
        return [content]
    found = []
    for index, part in enumerate(content):
        kind, place = part.get("type"), f"{where}[{index}]"
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind in _NOT_TEXT:
            raise InvalidRequest(
                f"{place} is of the type {kind!r}; this server reads text only. Leave it out, or "
                "send its text.",
                place,
            )
        if kind != "refusal" and kind not in _TEXTS:
            raise InvalidRequest(
                f"{place} is of the type {shown(kind)}; only texts are supported: 'input_text', or "
                "'output_text' in messages of the assistant.",
                place,
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"{place}.text must be a text, got {shown(text)}.", place)
        found.append(text)
    return found
