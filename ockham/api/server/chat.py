"""`POST /v1/chat/completions`."""

from __future__ import annotations

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.server.answer import OpenAIAnswer
from ockham.api.server.logprobs import chat_logprobs, prompt_logprobs
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import ChatRequest
from ockham.api.server.serving import read, serving
from ockham.api.server.telling import Telling, told_whole
from ockham.api.server.turn import Turn, take_turn
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
from ockham.text.reply.splitter import CallDelta


@describes(
    takes=ChatRequest,
    gives=ChatCompletion,
    streams=ChatChunk,
    example={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16},
)
async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation; the answer comes whole or as a stream."""
    request, prefill = await read(http, ChatRequest), ""
    if request.continue_final_message:
        request.check()
        request, prefill = request.to_be_continued()
    turn = await take_turn(http, request, prefill=prefill)
    kind = _SplitAnswer if turn.plan.splits or turn.begun.token_ids else _Answer
    return await kind(http, turn).respond(turn.job)


class _Answer(OpenAIAnswer):
    """An assistant's messages, or what is new of them; each begins with its role."""

    prefix = "chatcmpl"

    def __init__(self, http: Request, turn: Turn) -> None:
        request = turn.request
        super().__init__(serving(http), http, request, [turn.prompt])
        self.turn = turn
        self._shows_thoughts = request.include_reasoning is not False
        self._top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        self._service_tier = request.service_tier
        self._begun = [False] * turn.params.n

    def whole(self, outputs: list[RequestOutput]) -> ChatCompletion:
        (output,) = outputs
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.server.answer_name(self.request.model),
            choices=[self._choice(choice) for choice in output.outputs],
            system_fingerprint=self.server.fingerprint,
            prompt_token_ids=self.if_asked(self.turn.prompt.token_ids),
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
        parts = [self._chunk_of(choice) for choice in output.outputs]
        choices = [part for part in parts if part is not None]
        if not choices and output.prompt_logprobs is None:
            return None
        chunk = self._object(choices)
        if output.prompt_logprobs is not None:
            chunk.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return chunk

    def empty(self) -> ChatChunk:
        return self._object([])

    def reading(self) -> ChatChunk:
        delta = ChatDelta(role="assistant", content=None)
        return self._object([ChatChunkChoice(index=0, delta=delta)])

    def _chunk_of(self, choice: CompletionOutput) -> ChatChunkChoice | None:
        """What a chunk says of a choice: its role first of all, then what is new; None if nothing
        is."""
        if not self.has_news(choice):
            return None
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
            choice.token_ids,
            entries,
            self._top_logprobs,
            server.token_text,
            server.token_bytes,
            with_ids=bool(self.request.return_token_ids),
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

    def __init__(self, http: Request, turn: Turn) -> None:
        super().__init__(http, turn)
        self._warnings: list[str] = []
        self._streams: dict[int, Telling] = {}

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
        turn, tokenizer = self.turn, self.server.llm.tokenizer
        reply, thought = told_whole(
            turn.plan, turn.params, turn.text, choice, tokenizer, turn.begun
        )
        self._count(thought)
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
            turn = self.turn
            told = self._streams[choice.index] = Telling(
                turn.plan, turn.params, turn.text, turn.begun
            )
        new = told.add(choice)  # tokens without text too: they are counted
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
            self._count(told.reasoning_tokens(self.server.llm.tokenizer))
            self._warnings += told.warnings()
            if told.has_calls:
                made.finish_reason = _reason(choice.finish_reason)
        return made

    def _count(self, thought: int | None) -> None:
        if thought is not None:
            self.meter.reasoning_tokens = (self.meter.reasoning_tokens or 0) + thought


def _reason(finish_reason: str | None) -> str | None:
    return "tool_calls" if finish_reason == "stop" else finish_reason


def _call_delta(call: CallDelta) -> ToolCallDelta:
    """What is new of a call: its id and name where it begins, then pieces of its arguments."""
    made = ToolCallDelta(call.index, FunctionDelta(call.arguments))
    if call.name is not None:
        made.id, made.type, made.function.name = call.id or "", "function", call.name
    return made
