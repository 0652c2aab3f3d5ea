"""From the outputs of a job to the body or the events of a response.

`Answer` is what all protocols have in common. `OpenAIAnswer` is the answer of OpenAI's completions
and chat completions; `ReplyAnswer` (`reply_answer`) that of every other protocol of chats.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import error_body
from ockham.api.server.house import house
from ockham.api.server.job import Item, Job
from ockham.api.server.protocol import GenerationRequest
from ockham.api.server.serving import METERED, Serving, entries, request_id
from ockham.api.server.sse import COMMENT, DONE, event, unless_disconnected
from ockham.api.server.timings import AsksToSee, Progress, Report, Timings, progress_of
from ockham.api.server.wire import (
    ChatChunk,
    ChatCompletion,
    Completion,
    UsageMeter,
    now_s,
)
from ockham.core.errors import OckhamError
from ockham.core.outputs import CompletionOutput, RequestOutput


class Answer(ABC):
    """Runs a job and sends what comes of it, whole or as a stream. Large outputs are written in a
    thread.

    A subclass says what is written, in bytes that are sent as they are.
    """

    prefix: str
    """What the answer's id begins with."""
    media_type = "text/event-stream"
    """Of a stream."""
    alive: bytes | None = COMMENT
    """What a stream sends where nothing comes for long, so that nobody takes it for dead."""

    def __init__(
        self, server: Serving, http: Request, prompts: Sequence[Encoded], asked: AsksToSee
    ) -> None:
        """`asked` says what is to be seen of the answer's course."""
        self.server = server
        self.asked = asked
        self.id = f"{self.prefix}-{request_id(http)}"
        self.created = now_s()
        self._http = http
        self.opened = False
        """Whether the stream has begun."""
        self.meter = UsageMeter([prompt.token_ids for prompt in prompts])
        http.scope[METERED] = self.meter

    @property
    @abstractmethod
    def streams(self) -> bool:
        """Whether the caller wants a stream."""

    @abstractmethod
    def body(self, outputs: list[RequestOutput]) -> bytes:
        """The body that finished outputs make, which the meter has counted."""

    @abstractmethod
    def news(self, prompt: int, output: RequestOutput) -> bytes:
        """What a stream says of what is new of a prompt's answer, which the meter has counted.
        Empty if it says nothing."""

    def progressed(self, progress: Progress) -> bytes:
        """What a stream says of the reading of its prompt, where that is asked for. Empty if its
        protocol has no words for it."""
        return b""

    def timings(self) -> Timings | UnsetType:
        """The figures of a finished answer, if they are asked for."""
        if not self.asked.wants_timings:
            return UNSET
        return self.meter.course.timings(self.server.llm.ready.drafters)

    def timings_so_far(self) -> Timings | UnsetType:
        """The figures of a part of a stream, if they are asked for."""
        return self.meter.course.timings_so_far() if self.asked.timings_per_token else UNSET

    def report(self) -> Report | UnsetType:
        """All that is asked for of the course of a finished answer: a protocol that is not OpenAI's
        has it as the field `ockham` of its last object."""
        timings = self.timings()
        if timings is UNSET and not self.asked.return_ledger:
            return UNSET
        return Report(timings, self.meter.course.ledger if self.asked.return_ledger else UNSET)

    def opening(self) -> bytes:
        """What a stream begins with. It is sent once the engine has taken the request."""
        return b""

    @abstractmethod
    def closing(self) -> bytes:
        """What a stream ends with."""

    def sign_of_life(self) -> bytes | None:
        """What a stream says where nothing has come for long."""
        return self.alive

    def finished(self) -> None:
        """Called once the answer is complete, in the event loop."""
        return

    def failed(self, error: OckhamError) -> bytes:
        """What a stream ends with that has begun and cannot go on."""
        return event(error_body(error)) + DONE

    def open(self) -> bytes:
        """What a stream begins with, the first time that it is asked for."""
        if self.opened:
            return b""
        self.opened = True
        return self.opening()

    async def respond(self, job: Job) -> Response:
        """The response, whole or as a stream, as the request asks for it."""
        if self.streams:
            return self.server.stream(
                self._events(job), self.failed, alive=self.sign_of_life, media_type=self.media_type
            )
        body = await unless_disconnected(self._http.receive, self._body(job))
        if body is None:
            return Response(status_code=499)
        return Response(body, media_type="application/json")

    @contextmanager
    def _named(self, job: Job) -> Iterator[None]:
        """While the job runs, its caller may name it by the id of the answer."""
        answering = house(self._http).answering
        key = (caller_of(self._http).name, self.id)
        answering[key] = job
        try:
            yield
        finally:
            if answering.get(key) is job:  # the caller may have given the same id twice
                del answering[key]

    async def _body(self, job: Job) -> bytes:
        with self._named(job):
            outputs = await job.finals()
        self.finished()
        return await self.server.llm.in_thread(entries(outputs), lambda: self._counted(outputs))

    def _counted(self, outputs: list[RequestOutput]) -> bytes:
        for output in outputs:
            self.meter.add(output)
        return self.body(outputs)

    def items(self, job: Job) -> AsyncGenerator[Item, None]:
        """What a stream is made of."""
        return job.deltas()

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        with self._named(job):
            async with aclosing(self.items(job)) as items:
                async for prompt, output in items:
                    data = await self.server.llm.in_thread(
                        entries([output]), functools.partial(self._told, prompt, output)
                    )
                    if data:
                        yield data
        self.finished()
        yield self.closing()

    def _told(self, prompt: int, output: RequestOutput) -> bytes:
        self.meter.add(output)
        first = self.open()
        if output.progress is not None:
            if self.asked.return_progress:
                first += self.progressed(progress_of(output.progress))
            if not output.outputs:
                return first
        return first + self.news(prompt, output)


class OpenAIAnswer(Answer):
    """What completions and chat completions have in common: when something is sent, and the usage.

    A subclass says what an output looks like.
    """

    def __init__(
        self,
        server: Serving,
        http: Request,
        request: GenerationRequest,
        prompts: Sequence[Encoded],
    ) -> None:
        super().__init__(server, http, prompts, request)
        self.request = request

    @property
    def streams(self) -> bool:
        return bool(self.request.stream)

    @abstractmethod
    def whole(self, outputs: list[RequestOutput]) -> Completion | ChatCompletion:
        """The answer that finished outputs make; the usage is added to it."""

    @abstractmethod
    def part(self, prompt: int, output: RequestOutput) -> Completion | ChatChunk | None:
        """What is new of the answer to a prompt, if anything is to be shown of it."""

    @abstractmethod
    def empty(self) -> Completion | ChatChunk:
        """A part that says nothing."""

    @abstractmethod
    def reading(self) -> Completion | ChatChunk:
        """A part that says nothing yet, of an answer to come."""

    def progressed(self, progress: Progress) -> bytes:
        chunk = self.reading()
        chunk.prompt_progress = progress
        return event(msgspec.json.encode(chunk))

    def body(self, outputs: list[RequestOutput]) -> bytes:
        answer = self.whole(outputs)
        answer.usage = self.meter.usage(final=True)
        answer.timings = self.timings()
        return msgspec.json.encode(answer)

    def news(self, prompt: int, output: RequestOutput) -> bytes:
        chunk = self.part(prompt, output)
        if chunk is None:
            return b""
        if self.request.wants_running_usage:
            chunk.usage = self.meter.usage(final=False)
        elif self.request.wants_usage_chunk:
            chunk.usage = None
        if self.asked.timings_per_token:
            chunk.timings = self.timings_so_far()
        return event(msgspec.json.encode(chunk))

    def closing(self) -> bytes:
        request = self.request
        shows_usage = request.wants_usage_chunk or request.return_ledger
        if not shows_usage and not request.wants_timings:
            return DONE
        last = self.empty()
        last.timings = self.timings()
        if shows_usage:
            last.usage = self.meter.usage(final=True)
        return event(msgspec.json.encode(last)) + DONE

    def has_news(self, choice: CompletionOutput) -> bool:
        """Whether a delta holds something to show: text may be held back for some steps."""
        if choice.text or choice.finish_reason or choice.logprobs:
            return True
        return bool(self.request.return_token_ids and choice.token_ids)

    def if_asked(self, of_tokens: list[Any]) -> Any:
        """What is shown of tokens only where their ids were asked for."""
        return of_tokens if self.request.return_token_ids else UNSET
