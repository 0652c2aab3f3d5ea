"""`POST /v1/chat/completions`."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.job import Job
from ockham.api.server.logprobs import chat_logprobs, prompt_logprobs
from ockham.api.server.protocol import ChatRequest, TokenizeRequest, template_variables
from ockham.api.server.serving import Serving, body_bytes, entries, read, request_id, serving
from ockham.api.server.sse import DONE, event, unless_disconnected
from ockham.api.server.wire import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    UsageMeter,
    now_s,
)
from ockham.core.approximation import Approximation
from ockham.core.outputs import CompletionOutput, RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.text.marking import ReuseParams


async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation; the answer comes whole or as a stream."""
    server = serving(http)
    request = await read(http, ChatRequest)
    request.check()
    server.check_model(request.model)
    params = _sampling_params(request, server.llm.default_chat_parameters)
    server.check_room(http, request, params.n)
    reuse = request.reuse_params()
    text = await render(server, request, body_bytes(http))
    tokens, approximation = await server.llm.in_thread(
        max(len(text), body_bytes(http)), lambda: _encode(server, request, reuse, text)
    )
    job = server.job(http, [tokens], params, request, [approximation])
    answer = _Answer(server, request, params, request_id(http), tokens)
    if request.stream:
        return server.stream(answer.events(job))
    body = await unless_disconnected(http.receive, answer.whole(job))
    if body is None:
        return Response(status_code=499)
    return Response(body, media_type="application/json")


def _encode(
    server: Serving, request: ChatRequest, reuse: ReuseParams | None, text: str
) -> tuple[list[int], Approximation | None]:
    """The token ids of a rendered chat, and what may be reused of others."""
    special = bool(request.add_special_tokens)
    if reuse is None or not reuse.marks_chunks:
        tokens = server.llm.encode_here(text, add_special_tokens=special)
        return tokens, None if reuse is None else reuse.approximation()
    server.llm.check_length(len(text))
    messages = [message.for_template() for message in request.messages]
    pieces = reuse.cut_chat(text, messages)
    return server.llm.encode_pieces_here(pieces, reuse, add_special_tokens=special)


async def render(server: Serving, request: ChatRequest | TokenizeRequest, size: int) -> str:
    """The prompt that the model's chat template makes of messages, which came in a body of `size`
    bytes. Raises `InvalidRequest`."""
    variables = template_variables(request.chat_template_kwargs)
    messages = request.messages or []
    return await server.llm.render_chat(
        lambda: [message.for_template() for message in messages],
        size,
        add_generation_prompt=request.add_generation_prompt is not False,
        variables=variables,
        owner=getattr(request, "cache_salt", None) or "",
    )


def _sampling_params(request: ChatRequest, defaults: dict[str, Any]) -> SamplingParams:
    given = (request.max_completion_tokens, request.max_tokens, defaults.get("max_tokens"))
    max_tokens = next((limit for limit in given if limit is not None), None)
    return request.sampling_params(
        defaults,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        names={"logprobs": "top_logprobs", "max_tokens": request.length_field},
    )


class _Answer:
    """Turns the outputs of a job into what the caller gets."""

    def __init__(
        self,
        server: Serving,
        request: ChatRequest,
        params: SamplingParams,
        request_id: str,
        tokens: list[int],
    ) -> None:
        self._server = server
        self._request = request
        self._id = f"chatcmpl-{request_id}"
        self._created = now_s()
        self._tokens = tokens
        self._meter = UsageMeter([tokens])
        self._begun = [False] * params.n

    async def whole(self, job: Job) -> bytes:
        """The answer in one piece."""
        (output,) = await job.finals()
        return await self._server.llm.in_thread(entries([output]), lambda: self._completion(output))

    def _completion(self, output: RequestOutput) -> bytes:
        self._meter.add(output)
        completion = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._server.names[0],
            choices=[
                ChatChoice(
                    index=choice.index,
                    message=AssistantMessage(choice.text),
                    logprobs=self._logprobs(choice),
                    finish_reason=choice.finish_reason,
                    stop_reason=choice.stop_reason,
                    token_ids=self._if_asked(choice.token_ids),
                    drafted=self._if_asked(choice.drafted),
                )
                for choice in output.outputs
            ],
            system_fingerprint=self._server.fingerprint,
            usage=self._meter.usage(final=True),
            prompt_token_ids=self._if_asked(self._tokens),
        )
        if self._request.service_tier is not None:
            completion.service_tier = "default"
        if output.prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return msgspec.json.encode(completion)

    async def events(self, job: Job) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; each choice begins with its role."""
        request = self._request
        async with aclosing(job.deltas()) as items:
            async for _, output in items:
                chunk = await self._server.llm.in_thread(
                    entries([output]), functools.partial(self._chunk, output)
                )
                if chunk is not None:
                    yield event(chunk)
        if request.wants_usage_chunk:
            last = self._object([])
            last.usage = self._meter.usage(final=True)
            yield event(msgspec.json.encode(last))
        yield DONE

    def _chunk(self, output: RequestOutput) -> bytes | None:
        """A chunk that says what is new, if anything is to be shown of it."""
        self._meter.add(output)
        choices: list[ChatChunkChoice] = []
        for choice in output.outputs:
            choices += self._chunks(choice)
        if not choices and output.prompt_logprobs is None:
            return None
        chunk = self._object(choices)
        if output.prompt_logprobs is not None:
            chunk.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        if self._request.wants_running_usage:
            chunk.usage = self._meter.usage(final=False)
        elif self._request.wants_usage_chunk:
            chunk.usage = None
        return msgspec.json.encode(chunk)

    def _chunks(self, choice: CompletionOutput) -> list[ChatChunkChoice]:
        """What a chunk says of a choice: its role first of all, then what is new, if anything."""
        shown = choice.text or choice.finish_reason or choice.logprobs
        if not shown and not (self._request.return_token_ids and choice.token_ids):
            return []
        delta = ChatDelta(content=choice.text)
        if not self._begun[choice.index]:
            self._begun[choice.index] = True
            delta.role = "assistant"
        elif not choice.text:
            delta.content = UNSET
        made = ChatChunkChoice(
            index=choice.index,
            delta=delta,
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
            token_ids=self._if_asked(choice.token_ids),
            drafted=self._if_asked(choice.drafted),
        )
        if choice.finish_reason is not None:
            made.stop_reason = choice.stop_reason
        return [made]

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        top = self._request.top_logprobs or 0
        server, entries = self._server, choice.logprobs or []
        return chat_logprobs(choice.token_ids, entries, top, server.token_text, server.token_bytes)

    def _if_asked(self, of_tokens: list[Any]) -> Any:
        return of_tokens if self._request.return_token_ids else UNSET

    def _object(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._server.names[0],
            choices=choices,
            system_fingerprint=self._server.fingerprint,
        )
