"""`POST /v1/completions`."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.job import Job, naming
from ockham.api.server.logprobs import CompletionLogprobsWriter, prompt_logprobs
from ockham.api.server.protocol import CompletionRequest
from ockham.api.server.serving import Serving, body_bytes, entries, read, request_id, serving
from ockham.api.server.sse import DONE, event, unless_disconnected
from ockham.api.server.wire import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    UsageMeter,
    now_s,
)
from ockham.core.approximation import Approximation
from ockham.core.errors import InvalidRequest
from ockham.core.outputs import CompletionOutput, RequestOutput
from ockham.core.sampling_params import SamplingParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own, where neither the request nor the model says anything."""


async def create_completion(http: Request) -> Response:
    """Complete prompts; the answer comes whole or as a stream."""
    server = serving(http)
    request = await read(http, CompletionRequest)
    request.check()
    server.check_model(request.model)
    params = _sampling_params(request, server.llm.default_parameters)
    texts, prompts, approximations = await server.llm.in_thread(
        body_bytes(http), lambda: _encode(http, request, params, server)
    )
    job = server.job(http, prompts, params, request, approximations)
    answer = _Answer(server, request, params, request_id(http), texts, prompts)
    if request.stream:
        return server.stream(answer.events(job))
    body = await unless_disconnected(http.receive, answer.whole(job))
    if body is None:
        return Response(status_code=499)
    return Response(body, media_type="application/json")


def _sampling_params(request: CompletionRequest, defaults: dict[str, Any]) -> SamplingParams:
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = defaults.get("max_tokens", DEFAULT_MAX_TOKENS)
    scored = request.logprobs if request.echo else request.prompt_logprobs
    if request.echo and max_tokens == 0 and scored is None:
        scored = 0  # nothing is generated: the engine takes that as a prompt to be scored
    return request.sampling_params(
        defaults,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=scored,
    )


def _encode(
    http: Request, request: CompletionRequest, params: SamplingParams, server: Serving
) -> tuple[list[str | None], list[list[int]], list[Approximation | None]]:
    """Each prompt's text (where it came as one), token ids, and what may be reused of others.
    Nothing has been computed yet. Called in a thread where the body is large."""
    given = request.prompts()
    if len(given) > server.settings.max_prompts:
        raise InvalidRequest(
            f"prompt has {len(given)} entries, at most {server.settings.max_prompts}; split the "
            "request.",
            "prompt",
        )
    server.check_room(http, request, len(given) * params.n)
    special = request.add_special_tokens is not False
    reuse = request.reuse_params()
    texts, prompts, approximations = [], [], []
    for index, prompt in enumerate(given):
        approximation = None if reuse is None else reuse.approximation()
        with naming(index, len(given)):
            if reuse is not None and reuse.marks_chunks:
                if not isinstance(prompt, str):
                    raise InvalidRequest(
                        "reuse='chunk' finds chunks in text; send the prompt as text.", "prompt"
                    )
                text: str | None = prompt
                server.llm.check_length(len(prompt))
                tokens, approximation = server.llm.encode_pieces_here(
                    reuse.cut_text(prompt), reuse, add_special_tokens=special
                )
            else:
                text, tokens = server.llm.encode_prompt_here(prompt, add_special_tokens=special)
        if text is None and request.echo:
            text = server.decode_here(tokens)
        texts.append(text)
        prompts.append(tokens)
        approximations.append(approximation)
    return texts, prompts, approximations


class _Answer:
    """Turns the outputs of a job into what the caller gets."""

    def __init__(
        self,
        server: Serving,
        request: CompletionRequest,
        params: SamplingParams,
        request_id: str,
        texts: list[str | None],
        prompts: list[list[int]],
    ) -> None:
        self._server = server
        self._request = request
        self._params = params
        self._id = f"cmpl-{request_id}"
        self._created = now_s()
        self._texts = texts
        self._meter = UsageMeter(prompts)
        top = params.logprobs or 0
        self._writers = [
            CompletionLogprobsWriter(server.token_text, top) for _ in range(len(prompts) * params.n)
        ]
        self._echoed = [not request.echo] * len(self._writers)
        self._prompt_entries: dict[int, Any] = {}

    async def whole(self, job: Job) -> bytes:
        """The answer in one piece."""
        outputs = await job.finals()
        return await self._server.llm.in_thread(entries(outputs), lambda: self._completion(outputs))

    def _completion(self, outputs: list[RequestOutput]) -> bytes:
        choices = []
        for prompt, output in enumerate(outputs):
            self._meter.add(output)
            choices += [self._choice(prompt, output, choice) for choice in output.outputs]
        completion = self._object(choices)
        completion.usage = self._meter.usage(final=True)
        return msgspec.json.encode(completion)

    async def events(self, job: Job) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        request = self._request
        async with aclosing(job.deltas()) as items:
            async for prompt, output in items:
                chunk = await self._server.llm.in_thread(
                    entries([output]), functools.partial(self._chunk, prompt, output)
                )
                if chunk is not None:
                    yield event(chunk)
        if request.wants_usage_chunk:
            last = self._object([])
            last.usage = self._meter.usage(final=True)
            yield event(msgspec.json.encode(last))
        yield DONE

    def _chunk(self, prompt: int, output: RequestOutput) -> bytes | None:
        """A chunk that says what is new, if anything is to be shown of it."""
        self._meter.add(output)
        choices = [
            self._choice(prompt, output, choice)
            for choice in output.outputs
            if self._worth_telling(choice)
        ]
        if not choices:
            return None
        chunk = self._object(choices)
        if self._request.wants_running_usage:
            chunk.usage = self._meter.usage(final=False)
        elif self._request.wants_usage_chunk:
            chunk.usage = None
        return msgspec.json.encode(chunk)

    def _worth_telling(self, choice: CompletionOutput) -> bool:
        """Whether a delta holds something to show: text may be held back for some steps."""
        if choice.text or choice.finish_reason or choice.logprobs:
            return True
        return bool(self._request.return_token_ids and choice.token_ids)

    def _choice(
        self, prompt: int, output: RequestOutput, choice: CompletionOutput
    ) -> CompletionChoice:
        """One choice, whole or what is new of it; an echoed prompt stands before its first part."""
        index = prompt * self._params.n + choice.index
        if output.prompt_logprobs is not None:
            self._prompt_entries[prompt] = output.prompt_logprobs
        scored = self._prompt_entries.get(prompt)
        text = choice.text
        logprobs: CompletionLogprobs | None = None
        tokens, entries = list(choice.token_ids), list(choice.logprobs or [])
        first = not self._echoed[index]
        if first:
            self._echoed[index] = True
            text = (self._texts[prompt] or "") + text
            tokens = output.prompt_token_ids + tokens
            entries = [*(scored or []), *entries]
        if self._params.logprobs is not None:
            logprobs = self._writers[index].write(tokens, entries)
        made = CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        if self._request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            made.prompt_logprobs = prompt_logprobs(scored)
        if self._request.return_token_ids:
            made.token_ids, made.drafted = choice.token_ids, choice.drafted
            if not self._request.stream or first:
                made.prompt_token_ids = output.prompt_token_ids
        return made

    def _object(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._server.names[0],
            choices=choices,
            system_fingerprint=self._server.fingerprint,
            usage=UNSET,
        )
