"""Chat templates at work, in a process of their own.

A checkpoint's template is a program of a stranger, and what it does may depend on the messages. So
prompts are rendered in a worker process, within limits of time, memory and length: whatever a
template does, one request fails with a sentence, and neither an event loop nor an engine waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any

import msgspec

from ockham.core.errors import (
    InvalidRequest,
    LimitExceeded,
    OckhamError,
    TaskFailed,
    WorkerDied,
)
from ockham.core.worker import Worker, WorkerLimits
from ockham.core.worker_process import Service
from ockham.text.chat_template import Called, ChatTemplate

LIMITS = WorkerLimits(cpu_s=2.0, wall_s=20.0, memory_bytes=512 << 20, output_bytes=32 << 20)
"""What the rendering of one prompt may use. A chat of 10,000 messages takes 0.1 s of it."""

CHECKPOINTS, GIVEN = "The checkpoint's chat template", "The given chat template"
"""Whose template it is, as sentences about it begin."""

_MOST_TEMPLATES = 16


class Template(msgspec.Struct, frozen=True):
    """A template, and what is said of it."""

    source: str
    whose: str
    strict: bool = True
    """Whether messages whose text it would leave out are refused."""


class Question(msgspec.Struct, array_like=True, kw_only=True):
    """A chat to be rendered; without `messages`, a template to be tried out, or with `tools` to be
    looked at for how it writes them."""

    template: Template
    special_tokens: dict[str, str]
    now: datetime
    messages: Any = None
    tools: Any = None
    add_generation_prompt: bool = True
    variables: Any = None


class Answer(msgspec.Struct, array_like=True):
    """A prompt, or what a template is like: see `chat_template.Report`."""

    prompt: str = ""
    fault: str | None = None
    notes: tuple[str, ...] = ()
    called: Called | None = None


class ChatRenderer:
    """Renders chats in worker processes, which are started when the first chat comes. Safe to use
    from threads."""

    def __init__(self, special_tokens: Mapping[str, str], processes: int = 2) -> None:
        """`special_tokens` are the names that every template may use (`bos_token`)."""
        self.special_tokens = dict(special_tokens)
        self._faults: dict[Template, str] = {}
        """Of templates that were tried out and are of no use: why."""
        self._worker = Worker(
            "ockham.text.chat_renderer:SERVICE", Answer, limits=LIMITS, processes=processes
        )

    def start(self) -> None:
        """Start the processes now, without waiting for them."""
        self._worker.start()

    def submit(
        self,
        template: Template,
        messages: Any,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        owner: str = "",
    ) -> Future[Answer]:
        """Hand over a chat. Chats of one `owner` wait in turns with those of others. Raises
        InvalidRequest for what is no data, such as a function among the tools."""
        if template in self._faults:
            raise InvalidRequest(self._faults[template], "messages")
        question = Question(
            template=template,
            special_tokens=self.special_tokens,
            now=datetime.now(),
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        return self._worker.submit(msgspec.Raw(_encode(question)), owner=owner)

    def render(self, template: Template, messages: Any, **how: Any) -> str:
        """The prompt for `messages`; keywords as `submit` has them. Raises InvalidRequest, also if
        the template exceeds a limit, or WorkerError."""
        try:
            return self.submit(template, messages, **how).result().prompt
        except OckhamError as error:
            raise _told(error, template) from error

    async def wait(self, template: Template, asked: Future[Answer]) -> str:
        """The prompt that `submit` promised, for an event loop. Raises as `render` does."""
        try:
            return (await asyncio.wrap_future(asked)).prompt
        except OckhamError as error:
            raise _told(error, template) from error

    def check(self, template: Template) -> Answer:
        """What is wrong with a template, without a chat. One that is of no use is not tried again.
        Raises WorkerError if it cannot be found out."""
        try:
            answer = self.submit(template, None).result()
        except OckhamError as error:
            told = _told(error, template)
            if not isinstance(told, InvalidRequest):
                raise
            answer = Answer(fault=str(told))
        if answer.fault is not None:
            self._faults[template] = answer.fault
        return answer

    def called(self, template: Template) -> Called:
        """How a template writes tools and calls; nothing is known of one that fails. Raises
        WorkerError."""
        try:
            found = self.submit(template, None, tools=[{}]).result().called
        except OckhamError as error:
            if not isinstance(_told(error, template), InvalidRequest):
                raise
            found = None
        return found or Called(False)

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        return self._worker.pids

    def close(self) -> None:
        """End the processes; a later chat would start them anew."""
        self._worker.close()


def _encode(question: Question) -> bytes:
    try:
        return msgspec.msgpack.encode(question, enc_hook=_plain)
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "the messages hold half of a surrogate pair, which is no character; send valid "
            "Unicode.",
            "messages",
        ) from error
    except RecursionError as error:
        raise InvalidRequest(
            "the messages, tools or chat_template_kwargs are nested too deeply.", "messages"
        ) from error
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise InvalidRequest(
            f"the messages, tools or chat_template_kwargs hold what is no JSON ({error}).",
            "messages",
        ) from error


def _plain(value: Any) -> Any:
    """Other kinds of objects and lists as Python's own."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise NotImplementedError(f"an object of type {type(value).__name__}")


def _told(error: OckhamError, template: Template) -> OckhamError:
    """The error as one that says whose template it was."""
    whose = template.whose
    if isinstance(error, LimitExceeded):
        return InvalidRequest(f"{whose} was stopped: {error}", "messages")
    if isinstance(error, WorkerDied):
        return WorkerDied(f"{whose} could not be rendered: {error}")
    if isinstance(error, TaskFailed):
        reason = "they are nested too deeply" if error.kind == "RecursionError" else str(error)
        return InvalidRequest(f"{whose} could not be given these messages: {reason}.", "messages")
    return error


def _begin(_: None) -> Callable[[Question], Answer]:
    import jinja2.sandbox  # noqa: F401  # what it takes counts as the process's, not the first chat's

    templates: OrderedDict[tuple[Template, bool], ChatTemplate] = OrderedDict()

    def answer(question: Question) -> Answer:
        key = (question.template, bool(question.tools))
        template = templates.get(key)
        if template is None:
            template = templates[key] = ChatTemplate(
                question.template.source,
                question.template.whose,
                question.special_tokens,
                with_tools=bool(question.tools),
                strict=question.template.strict,
            )
            if len(templates) > _MOST_TEMPLATES:
                templates.popitem(last=False)
        if question.messages is None and question.tools:
            return Answer(called=template.called())
        if question.messages is None:
            report = template.report()
            return Answer(fault=report.fault, notes=report.notes)
        return Answer(
            template.render(
                question.messages,
                tools=question.tools,
                add_generation_prompt=question.add_generation_prompt,
                variables=question.variables,
                now=question.now,
            )
        )

    return answer


SERVICE = Service(type(None), Question, _begin)
