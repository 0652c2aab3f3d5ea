"""`Answer`: from the outputs of a job to the body or the events of a response."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.job import Job
from ockham.api.server.protocol import GenerationRequest
from ockham.api.server.serving import Serving, entries, request_id
from ockham.api.server.sse import DONE, event, unless_disconnected
from ockham.api.server.wire import (
    ChatChunk,
    ChatCompletion,
    Completion,
    UsageMeter,
    now_s,
)
from ockham.core.outputs import CompletionOutput, RequestOutput


class Answer(ABC):
    """What completions and chat completions have in common: when something is sent, and the usage.

    A subclass says what an output looks like. Large outputs are written in a thread.
    """

    prefix: str
    """What the answer's id begins with."""

    def __init__(
        self,
        server: Serving,
        http: Request,
        request: GenerationRequest,
        prompts: Sequence[Encoded],
    ) -> None:
        self.server = server
        self.request = request
        self.id = f"{self.prefix}-{request_id(http)}"
        self.created = now_s()
        self._http = http
        self.meter = UsageMeter([prompt.token_ids for prompt in prompts])

    @abstractmethod
    def whole(self, outputs: list[RequestOutput]) -> Completion | ChatCompletion:
        """The answer that finished outputs make; the usage is added to it."""

    @abstractmethod
    def part(self, prompt: int, output: RequestOutput) -> Completion | ChatChunk | None:
        """What is new of the answer to a prompt, if anything is to be shown of it."""

    @abstractmethod
    def empty(self) -> Completion | ChatChunk:
        """A part that says nothing."""

    async def respond(self, job: Job) -> Response:
        """The response, whole or as a stream, as the request asks for it."""
        if self.request.stream:
            return self.server.stream(self._events(job))
        body = await unless_disconnected(self._http.receive, self._body(job))
        if body is None:
            return Response(status_code=499)
        return Response(body, media_type="application/json")

    async def _body(self, job: Job) -> bytes:
        outputs = await job.finals()
        return await self.server.llm.in_thread(entries(outputs), lambda: self._encoded(outputs))

    def _encoded(self, outputs: list[RequestOutput]) -> bytes:
        for output in outputs:
            self.meter.add(output)
        answer = self.whole(outputs)
        answer.usage = self.meter.usage(final=True)
        return msgspec.json.encode(answer)

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        async with aclosing(job.deltas()) as items:
            async for prompt, output in items:
                chunk = await self.server.llm.in_thread(
                    entries([output]), functools.partial(self._chunk, prompt, output)
                )
                if chunk is not None:
                    yield event(chunk)
        if self.request.wants_usage_chunk:
            last = self.empty()
            last.usage = self.meter.usage(final=True)
            yield event(msgspec.json.encode(last))
        yield DONE

    def _chunk(self, prompt: int, output: RequestOutput) -> bytes | None:
        self.meter.add(output)
        chunk = self.part(prompt, output)
        if chunk is None:
            return None
        if self.request.wants_running_usage:
            chunk.usage = self.meter.usage(final=False)
        elif self.request.wants_usage_chunk:
            chunk.usage = None
        return msgspec.json.encode(chunk)

    def has_news(self, choice: CompletionOutput) -> bool:
        """Whether a delta holds something to show: text may be held back for some steps."""
        if choice.text or choice.finish_reason or choice.logprobs:
            return True
        return bool(self.request.return_token_ids and choice.token_ids)

    def if_asked(self, of_tokens: list[Any]) -> Any:
        """What is shown of tokens only where their ids were asked for."""
        return of_tokens if self.request.return_token_ids else msgspec.UNSET
