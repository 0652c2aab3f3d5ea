"""How a model writes its answers, and what splits them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ockham.core.outputs import Reply
from ockham.text.chat_template import Called
from ockham.text.reply.discover import find_format
from ockham.text.reply.formats import (
    HERMES,
    Format,
    Frame,
    Thought,
    format_of,
    frame_of,
    thought_of,
)
from ockham.text.reply.parser import ReplyParser
from ockham.text.reply.schemas import Tools
from ockham.text.reply.splitter import Splitter

if TYPE_CHECKING:
    from ockham.text.reply.template import ResponseTemplate


_TOOLS = re.compile(r"\btools\b")
"""The variable by which templates are given tools."""


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes calls and thoughts: the checkpoint's own `template`, else a format and
    what stands around thoughts and around answers. None for what it does not write."""

    template: ResponseTemplate | None = None
    format: Format | None = None
    thought: Thought | None = None
    frame: Frame | None = None
    spelled: bool = False
    """Whether the template shows no tools, so that they are written in a message: see
    `spelled`."""
    told: bool = False
    """Whether the template shows calls but no tools, so that these are told in a message in the
    format's words."""
    note: str | None = None
    """What a user should know of it, in a sentence."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that must be seen in an answer, also where they are special tokens."""
        if self.template is not None:
            return self.template.marks
        around = [(each.open, each.close) for each in (self.thought, self.frame) if each]
        return (*(self.format.marks if self.format else ()), *(m for pair in around for m in pair))

    @property
    def thinks(self) -> bool:
        """Whether answers may hold thoughts that can be told apart."""
        if self.template is not None:
            return self.template.thinks
        return self.thought is not None or (self.format is not None and self.format.channels)

    @property
    def calls(self) -> bool:
        """Whether it is known how calls are written."""
        return self.format is not None or (self.template is not None and self.template.calls)

    def in_thought(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought that it opened."""
        return self.thought is not None and prompt.rstrip().endswith(self.thought.open)

    def has_thought(self, prompt: str) -> bool:
        """Whether a prompt holds the answer's thought already, which may be empty."""
        return self.thought is not None and prompt.rstrip().endswith(self.thought.close)

    def splitter(
        self, tools: Tools | None = None, *, prompt: str = "", hidden: Iterable[str] = ()
    ) -> Splitter:
        """What splits one answer. `tools` are None where no calls are looked for. `prompt` is the
        text that the answer goes on from. `hidden` are special tokens that are left out."""
        if self.template is not None and (tools is None or self.template.calls):
            from ockham.text.reply.template import TemplateParser

            return TemplateParser(self.template, tools, prompt=prompt, hidden=hidden)
        return ReplyParser(
            self.format,
            self.thought,
            tools,
            frame=self.frame,
            prompt=prompt,
            hidden=frozenset(hidden) - set(self.marks),
        )


def style_of(template: str, response_template: Any = None) -> Style:
    """The style of a chat template, and of the `response_template` of a checkpoint where it has
    one."""
    own, note = None, None
    if isinstance(response_template, Mapping):
        from ockham.text.reply.template import read_response_template

        own, note = read_response_template(response_template)
    format_ = format_of(template)
    return Style(
        template=own,
        format=format_,
        told=format_ is not None and format_.words is not None and not _TOOLS.search(template),
        thought=thought_of(template),
        frame=frame_of(template),
        note=note,
    )


def with_calls(style: Style, called: Called) -> Style:
    """The style with a format of calls that was found in what the template made of one. Where there
    is none, tools are told in Hermes's words."""
    format_ = None
    if called.text is not None:
        format_ = find_format(called.text, called.name, called.key, called.value)
    if format_ is not None:
        return msgspec.structs.replace(style, format=format_)
    return msgspec.structs.replace(style, format=HERMES, spelled=True)


def parse(
    text: str,
    style: Style,
    tools: Tools | None = None,
    *,
    prompt: str = "",
    hidden: Iterable[str] = (),
    cut: bool = False,
) -> Reply:
    """A whole answer, split. Arguments as `Style.splitter` and `Splitter.finish` have them."""
    splitter = style.splitter(tools, prompt=prompt, hidden=hidden)
    splitter.feed(text)
    splitter.finish(cut=cut)
    return splitter.reply()
