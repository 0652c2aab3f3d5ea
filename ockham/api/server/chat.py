"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.chatting import (
    ChatPlan,
    left_out,
    read_tools,
    reasoning_tokens,
    thinking_variables,
)
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
    FunctionCall,
    FunctionDelta,
    MessageToolCall,
    ToolCallDelta,
)
from ockham.core.outputs import CompletionOutput, RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.text.marking import ReuseParams
from ockham.text.reply.splitter import CallDelta, ReplyDelta, Splitter


async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation; the answer comes whole or as a stream."""
    server = serving(http)
    request = await read(http, ChatRequest)
    request.check()
    server.check_model(request.model)
    params = _sampling_params(request, server.llm.default_chat_parameters)
    server.check_room(http, request, params.sequences)
    reuse = request.reuse_params()
    text, plan = await render(server, request, body_bytes(http), params)
    prompt = await server.llm.in_thread(
        max(len(text), body_bytes(http)), lambda: _read(server, request, reuse, text)
    )
    job = server.job(http, [prompt], plan.params(params, text), request)
    kind = _SplitAnswer if plan.splits else _Answer
    return await kind(server, http, request, params, prompt, plan).respond(job)


def _read(server: Serving, request: ChatRequest, reuse: ReuseParams | None, text: str) -> Encoded:
    """The prompt that a rendered chat is."""
    messages = (message.for_template() for message in request.messages)
    return server.llm.prompts.read_chat(
        text, messages, reuse, add_special_tokens=bool(request.add_special_tokens)
    )


async def render(
    server: Serving,
    request: ChatRequest | TokenizeRequest,
    size: int,
    params: SamplingParams | None = None,
) -> tuple[str, ChatPlan]:
    """The prompt that the model's chat template makes of messages, which came in a body of `size`
    bytes, and how it is served. Raises `InvalidRequest`."""
    parallel = request.parallel_tool_calls if isinstance(request, ChatRequest) else None
    choice = read_tools(request.tools, request.tool_choice, parallel)
    plan = await server.llm.plan_chat(choice)
    if params is not None:
        plan.check(params)  # before the template is run
    variables = template_variables(request.chat_template_kwargs)
    messages = request.messages or []
    text = await server.llm.render_chat(
        lambda: [message.for_template() for message in messages],
        size,
        plan=plan,
        add_generation_prompt=request.add_generation_prompt is not False,
        variables=thinking_variables(variables, request.reasoning_effort),
        owner=getattr(request, "cache_salt", None) or "",
    )
    return text, plan


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
        plan: ChatPlan,
    ) -> None:
        super().__init__(server, http, request, [prompt])
        self._shows_thoughts = request.include_reasoning is not False
        self._params = params
        self._plan = plan
        self._prompt = prompt.text or ""
        self._top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self._service_tier = request.service_tier
        self._tokens = prompt.token_ids
        self._begun = [False] * params.n

    def whole(self, outputs: list[RequestOutput]) -> ChatCompletion:
        (output,) = outputs
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.server.answer_name(self.request.model),
            choices=[self._choice(choice) for choice in output.outputs],
            system_fingerprint=self.server.fingerprint,
            prompt_token_ids=self.if_asked(self._tokens),
        )
        if self._service_tier is not None:
            completion.service_tier = "default"
        if output.prompt_logprobs is not None:
            completion.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return completion

    def _choice(self, choice: CompletionOutput) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(choice.text),
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=self.if_asked(choice.token_ids),
            drafted=self.if_asked(choice.drafted),
            ockham=choice.report or UNSET,
        )

    def part(self, prompt: int, output: RequestOutput) -> ChatChunk | None:
        parts = [self._chunk_of(choice) for choice in output.outputs if self.has_news(choice)]
        choices = [part for part in parts if part is not None]
        if not choices and output.prompt_logprobs is None:
            return None
        chunk = self._object(choices)
        if output.prompt_logprobs is not None:
            chunk.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return chunk

    def empty(self) -> ChatChunk:
        return self._object([])

    def _chunk_of(self, choice: CompletionOutput) -> ChatChunkChoice | None:
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
            model=self.server.answer_name(self.request.model),
            choices=choices,
            system_fingerprint=self.server.fingerprint,
        )


class _SplitAnswer(_Answer):
    """An answer that may hold thoughts and calls of tools."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._warnings: list[str] = []
        self._streams: dict[int, _Told] = {}

    def whole(self, outputs: list[RequestOutput]) -> ChatCompletion:
        completion = super().whole(outputs)
        if self._warnings:
            completion.warnings = list(dict.fromkeys(self._warnings))
        return completion

    def part(self, prompt: int, output: RequestOutput) -> ChatChunk | None:
        chunk = super().part(prompt, output)
        if chunk is not None and self._warnings:
            chunk.warnings, self._warnings = self._warnings, []
        return chunk

    def _choice(self, choice: CompletionOutput) -> ChatChoice:
        made = super()._choice(choice)
        reply, thoughts = self._plan.split(choice.text, self._params, self._prompt)
        self._count(choice.token_ids, choice.text, thoughts)
        self._warnings += reply.warnings
        made.message.content = reply.content
        if reply.reasoning is not None and self._shows_thoughts:
            made.message.reasoning_content = made.message.reasoning = reply.reasoning
        if reply.tool_calls:
            made.message.tool_calls = [
                MessageToolCall(call.id, FunctionCall(call.name, call.arguments))
                for call in reply.tool_calls
            ]
            made.finish_reason = _reason(choice.finish_reason)
        return made

    def _chunk_of(self, choice: CompletionOutput) -> ChatChunkChoice | None:
        told = self._streams.get(choice.index)
        if told is None:
            told = self._streams[choice.index] = _Told(
                self._plan.splitter(self._params, self._prompt), self._plan.choice.parallel
            )
        new = told.add(choice)
        begun = self._begun[choice.index]
        silent = not (new or choice.finish_reason or choice.logprobs)
        if silent and begun and not (self.request.return_token_ids and choice.token_ids):
            return None
        made = super()._chunk_of(choice)
        if made is None:
            return None
        made.delta.content = new.content if new.content or not begun else UNSET
        if new.reasoning and self._shows_thoughts:
            made.delta.reasoning_content = made.delta.reasoning = new.reasoning
        if new.calls:
            made.delta.tool_calls = [_call_delta(call) for call in new.calls]
        if choice.finish_reason is not None:
            self._count(told.token_ids, "".join(told.texts), told.splitter.thoughts)
            self._warnings += told.warnings()
            if told.splitter.has_calls:
                made.finish_reason = _reason(choice.finish_reason)
        return made

    def _count(self, tokens: list[int], text: str, thoughts: list[tuple[int, int]]) -> None:
        if self._plan.style.thinks:
            skips = self._plan.skips_special_tokens(self._params)
            count = reasoning_tokens(self.server.llm.tokenizer, tokens, text, thoughts, skips)
            self.meter.reasoning_tokens = (self.meter.reasoning_tokens or 0) + count


class _Told:
    """What a stream has told of one choice."""

    def __init__(self, splitter: Splitter, parallel: bool) -> None:
        self.splitter = splitter
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self._parallel = parallel
        self._left_out: set[int] = set()

    def add(self, choice: CompletionOutput) -> ReplyDelta:
        """What is new with the next part of the choice."""
        self.texts.append(choice.text)
        self.token_ids += choice.token_ids
        new = self.splitter.feed(choice.text)
        if choice.finish_reason is not None:
            new.add(self.splitter.finish())
        if not self._parallel:
            self._left_out |= {call.index for call in new.calls if call.index}
            new.calls = [call for call in new.calls if not call.index]
        return new

    def warnings(self) -> list[str]:
        more = [left_out(len(self._left_out))] if self._left_out else []
        return [*self.splitter.warnings, *more]


def _reason(finish_reason: str | None) -> str | None:
    return "tool_calls" if finish_reason == "stop" else finish_reason


def _call_delta(call: CallDelta) -> ToolCallDelta:
    """What is new of a call: its id and name where it begins, then pieces of its arguments."""
    made = ToolCallDelta(call.index, FunctionDelta(call.arguments))
    if call.name is not None:
        made.id, made.type, made.function.name = call.id or "", "function", call.name
    return made
