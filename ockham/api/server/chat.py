"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.answer import Answer
from ockham.api.server.logprobs import chat_logprobs, prompt_logprobs
from ockham.api.server.protocol import ChatRequest, TokenizeRequest, template_variables
from ockham.api.server.serving import Serving, body_bytes, read, serving
from ockham.api.server.wire import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
)
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
    server.check_room(http, request, params.sequences)
    reuse = request.reuse_params()
    text = await render(server, request, body_bytes(http))
    prompt = await server.llm.in_thread(
        max(len(text), body_bytes(http)), lambda: _read(server, request, reuse, text)
    )
    job = server.job(http, [prompt], params, request)
    return await _Answer(server, http, request, params, prompt).respond(job)


def _read(server: Serving, request: ChatRequest, reuse: ReuseParams | None, text: str) -> Encoded:
    """The prompt that a rendered chat is."""
    messages = (message.for_template() for message in request.messages)
    return server.llm.prompts.read_chat(
        text, messages, reuse, add_special_tokens=bool(request.add_special_tokens)
    )


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


class _Answer(Answer):
    """An assistant's messages, or what is new of them; each begins with its role."""

    prefix = "chatcmpl"

    def __init__(
        self,
        server: Serving,
        http: Request,
        request: ChatRequest,
        params: SamplingParams,
        prompt: Encoded,
    ) -> None:
        super().__init__(server, http, request, [prompt])
        self._top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self._service_tier = request.service_tier
        self._tokens = prompt.token_ids
        self._begun = [False] * params.n

    def whole(self, outputs: list[RequestOutput]) -> ChatCompletion:
        (output,) = outputs
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.server.names[0],
            choices=[
                ChatChoice(
                    index=choice.index,
                    message=AssistantMessage(choice.text),
                    logprobs=self._logprobs(choice),
                    finish_reason=choice.finish_reason,
                    stop_reason=choice.stop_reason,
                    token_ids=self.if_asked(choice.token_ids),
                    drafted=self.if_asked(choice.drafted),
                    ockham=choice.report or UNSET,
                )
                for choice in output.outputs
            ],
            system_fingerprint=self.server.fingerprint,
            prompt_token_ids=self.if_asked(self._tokens),
        )
        if self._service_tier is not None:
            completion.service_tier = "default"
        if output.prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return completion

    def part(self, prompt: int, output: RequestOutput) -> ChatChunk | None:
        choices = [self._chunk_of(choice) for choice in output.outputs if self.has_news(choice)]
        if not choices and output.prompt_logprobs is None:
            return None
        chunk = self._object(choices)
        if output.prompt_logprobs is not None:
            chunk.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return chunk

    def empty(self) -> ChatChunk:
        return self._object([])

    def _chunk_of(self, choice: CompletionOutput) -> ChatChunkChoice:
        """What a chunk says of a choice: its role first of all, then what is new."""
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
            token_ids=self.if_asked(choice.token_ids),
            drafted=self.if_asked(choice.drafted),
            ockham=choice.report or UNSET,
        )
        if choice.finish_reason is not None:
            made.stop_reason = choice.stop_reason
        return made

    def _logprobs(self, choice: CompletionOutput) -> ChatLogprobs | None:
        if self._top_logprobs is None:
            return None
        server, entries = self.server, choice.logprobs or []
        return chat_logprobs(
            choice.token_ids, entries, self._top_logprobs, server.token_text, server.token_bytes
        )

    def _object(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.server.names[0],
            choices=choices,
            system_fingerprint=self.server.fingerprint,
        )
