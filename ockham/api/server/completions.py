"""`POST /v1/completions`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.answer import OpenAIAnswer
from ockham.api.server.house import GENERATE, choose
from ockham.api.server.job import naming
from ockham.api.server.logprobs import CompletionLogprobsWriter, prompt_logprobs
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import CompletionRequest
from ockham.api.server.serving import Serving, body_bytes, read
from ockham.api.server.wire import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from ockham.core.errors import InvalidRequest
from ockham.core.outputs import CompletionOutput, RequestOutput
from ockham.core.sampling_params import SamplingParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own, where neither the request nor the model says anything."""


@describes(
    takes=CompletionRequest,
    gives=Completion,
    streams=Completion,
    example={"prompt": "Once upon a time", "max_tokens": 16},
)
async def create_completion(http: Request) -> Response:
    """Complete prompts; the answer comes whole or as a stream."""
    request = await read(http, CompletionRequest)
    request.check()
    server = await choose(http, request.model, GENERATE)
    params = _sampling_params(request, server.llm.default_parameters)
    prompts = await server.llm.in_thread(
        body_bytes(http), lambda: _read(http, request, params, server)
    )
    fill_in = server.llm.prompts.tokenizer.fill_in if request.suffix else None
    if fill_in is not None:
        params = fill_in.ending(params)
    job = server.job(http, prompts, _made(request, params), request)
    return await _Answer(server, http, request, params, prompts).respond(job)


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


def _made(request: CompletionRequest, params: SamplingParams) -> SamplingParams:
    """What is made for an answer with these parameters: more than it has where it is the best of
    several, with the log probabilities by which these are told apart."""
    if request.best_of in (None, params.n) or params.greedy:
        return params
    return msgspec.structs.replace(params, n=request.best_of, logprobs=params.logprobs or 0)


def _best(choices: list[CompletionOutput], count: int) -> list[CompletionOutput]:
    """The likeliest completions, by log probability for each token, as OpenAI has it."""
    if len(choices) == count:
        return choices

    def likelihood(choice: CompletionOutput) -> float:
        return (choice.cumulative_logprob or 0.0) / max(1, len(choice.token_ids))

    best = sorted(choices, key=likelihood, reverse=True)[:count]
    return [msgspec.structs.replace(choice, index=rank) for rank, choice in enumerate(best)]


def _read(
    http: Request, request: CompletionRequest, params: SamplingParams, server: Serving
) -> list[Encoded]:
    """The prompts, with the text of each if it is echoed. Nothing has been computed yet. Called in
    a thread where the body is large."""
    given = request.prompts()
    if len(given) > server.settings.max_prompts:
        raise InvalidRequest(
            f"prompt has {len(given)} entries, at most {server.settings.max_prompts}; split the "
            "request.",
            "prompt",
        )
    server.check_room(http, request, len(given) * _made(request, params).sequences)
    special = request.add_special_tokens is not False
    reuse = request.reuse_params()
    prompts = []
    for index, prompt in enumerate(given):
        with naming(index, len(given)):
            if request.suffix:
                prompts.append(_fill_in(prompt, request.suffix, server))
                continue
            read = server.llm.prompts.read(prompt, reuse, add_special_tokens=special)
        if read.text is None and request.echo:
            read = replace(read, text=server.decode_here(read.token_ids))
        prompts.append(read)
    return prompts


def _fill_in(prompt: str | list[int], suffix: str, server: Serving) -> Encoded:
    if not isinstance(prompt, str):
        raise InvalidRequest("suffix goes with prompts of text; send the prompt as text.", "suffix")
    return server.llm.prompts.read_fill_in(prompt, suffix)[0]


class _Answer(OpenAIAnswer):
    """Prompts and their completions, or what is new of one."""

    prefix = "cmpl"

    def __init__(
        self,
        server: Serving,
        http: Request,
        request: CompletionRequest,
        params: SamplingParams,
        prompts: list[Encoded],
    ) -> None:
        super().__init__(server, http, request, prompts)
        self._prompt_logprobs = request.prompt_logprobs
        self._params = params
        self._texts = [prompt.text for prompt in prompts]
        top = params.logprobs or 0
        self._writers = [
            CompletionLogprobsWriter(server.token_text, top) for _ in range(len(prompts) * params.n)
        ]
        self._echoed = [not request.echo] * len(self._writers)
        self._prompt_entries: dict[int, Any] = {}

    def whole(self, outputs: list[RequestOutput]) -> Completion:
        return self._object(
            [
                self._choice(prompt, output, choice)
                for prompt, output in enumerate(outputs)
                for choice in _best(output.outputs, self._params.n)
            ]
        )

    def part(self, prompt: int, output: RequestOutput) -> Completion | None:
        choices = [
            self._choice(prompt, output, choice)
            for choice in output.outputs
            if self.has_news(choice)
        ]
        return self._object(choices) if choices else None

    def empty(self) -> Completion:
        return self._object([])

    def reading(self) -> Completion:
        return self._object([CompletionChoice(index=0, text="")])

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
            ockham=choice.report or UNSET,
        )
        if self._prompt_logprobs is not None and output.prompt_logprobs is not None:
            made.prompt_logprobs = prompt_logprobs(scored)
        if self.request.return_token_ids:
            made.token_ids, made.drafted = choice.token_ids, choice.drafted
            if not self.request.stream or first:
                made.prompt_token_ids = output.prompt_token_ids
        return made

    def _object(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.server.answer_name(self.request.model),
            choices=choices,
            system_fingerprint=self.server.fingerprint,
            usage=UNSET,
        )
