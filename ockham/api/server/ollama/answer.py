"""From the outputs of a job to the objects of Ollama's answers."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from ockham.api.server.logprobs import chat_logprobs
from ockham.api.server.ollama.dialect import error_line
from ockham.api.server.ollama.wire import (
    Answered,
    Chatted,
    Generated,
    Probability,
    Said,
    ToolCalled,
    called,
    lines,
    now,
    probabilities,
)
from ockham.api.server.reply_answer import Ending, ReplyAnswer
from ockham.api.server.timings import Progress
from ockham.api.server.turn import Turn
from ockham.core.errors import OckhamError
from ockham.core.ledger import Ledger
from ockham.core.outputs import CompletionOutput, Reply, RequestOutput, ToolCall
from ockham.text.reply.splitter import ReplyDelta

_NS = 1_000_000_000


class OllamaAnswer(ReplyAnswer):
    """An answer in JSON, or a stream of JSON objects, one on each line.

    A subclass says what an object has of the text.
    """

    prefix = "ollama"
    media_type = "application/x-ndjson"

    def __init__(
        self, http: Request, turn: Turn, name: str, begin_ns: int, warnings: list[str]
    ) -> None:
        """`name` is the model's as the caller has it, `begin_ns` when the request came, on the
        monotonic clock."""
        super().__init__(http, turn)
        self.name = name
        self.alive = lines([self.made("")])
        self._begin_ns = begin_ns
        self._warnings = warnings
        self._probabilities: list[Probability] = []
        self._calls: list[ToolCall] = []
        self._told_calls = 0

    @abstractmethod
    def made(
        self, content: str, thinking: str = "", calls: list[ToolCalled] | UnsetType = UNSET
    ) -> Answered:
        """An object that says this."""

    @abstractmethod
    def finish(self, answer: Answered) -> None:
        """Add to the last object what only this kind of answer has."""

    def body(self, outputs: list[RequestOutput]) -> bytes:
        for output in outputs:
            for choice in output.outputs:
                self._see(choice)
        return super().body(outputs)

    def whole(self, reply: Reply, ending: Ending) -> bytes:
        calls = [called(call, index) for index, call in enumerate(reply.tool_calls)]
        answer = self.made(reply.content or "", reply.reasoning or "", calls or UNSET)
        self._close(answer, ending)
        return msgspec.json.encode(answer)

    def begin(self) -> Iterator[bytes]:
        return iter(())

    def tell(self, new: ReplyDelta, choice: CompletionOutput) -> Iterator[bytes]:
        self._see(choice)
        calls, texts = self._complete(new)
        content = "".join([*texts, new.content])
        if content or new.reasoning or calls or self._probabilities:
            yield self._line(content, new.reasoning, calls)

    def end(self, ending: Ending) -> Iterator[bytes]:
        calls, texts = self._ready(len(self._calls))
        if calls or texts:
            yield self._line("".join(texts), "", calls)
        last = self.made("")
        self._close(last, ending)
        yield lines([last])

    def progressed(self, progress: Progress) -> bytes:
        answer = self.made("")
        answer.prompt_progress = progress
        return lines([answer])

    def failed(self, error: OckhamError) -> bytes:
        return error_line(error)

    def _line(self, content: str, thinking: str, calls: list[ToolCalled]) -> bytes:
        answer = self.made(content, thinking, calls or UNSET)
        answer.logprobs, self._probabilities = self._probabilities or UNSET, []
        return lines([answer])

    def _see(self, choice: CompletionOutput) -> None:
        """Keep what is told of a part of the answer that is not its text."""
        request = self.turn.request
        if request.logprobs and choice.logprobs:
            entries, server = choice.logprobs, self.server
            top = request.top_logprobs or 0
            self._probabilities += probabilities(
                chat_logprobs(choice.token_ids, entries, top, server.token_text, server.token_bytes)
            )

    def _complete(self, new: ReplyDelta) -> tuple[list[ToolCalled], list[str]]:
        """Take in what is new of calls; those that are complete are told, since clients expect
        whole ones. A call is complete when another begins, or when it turns out to be text."""
        for call in new.calls:
            if call.name is not None:
                self._calls.append(ToolCall(call.id or "", call.name, ""))
            self._calls[call.index].arguments += call.arguments
        complete = len(self._calls) - 1
        if complete >= 0 and self.unread_call(complete) is not None:
            complete += 1
        return self._ready(complete)

    def _ready(self, count: int) -> tuple[list[ToolCalled], list[str]]:
        """What has not been told of the first `count` calls: calls, and texts that are none."""
        texts, calls = [], []
        for index in range(self._told_calls, count):
            raw = self.unread_call(index)
            if raw is None:
                calls.append(called(self._calls[index], index))
            else:
                texts.append(raw)
        self._told_calls = max(self._told_calls, count)
        return calls, texts

    def _close(self, answer: Answered, ending: Ending) -> None:
        """Make an object the last one: how the answer ended, and what it took."""
        usage = self.meter.usage(final=True)
        bill = usage.ockham
        assert isinstance(bill, Ledger), "a finished answer has its bill"
        answer.done = True
        reason = ending.finish_reason
        answer.done_reason = "stop" if reason == "tool_calls" else reason
        answer.total_duration = time.monotonic_ns() - self._begin_ns
        answer.load_duration = 0
        answer.prompt_eval_count = usage.prompt_tokens
        answer.prompt_cached_count = usage.prompt_tokens_details.cached_tokens
        answer.prompt_eval_duration = _nanoseconds(bill.prefill_s)
        answer.eval_count = usage.completion_tokens
        answer.eval_duration = _nanoseconds(bill.decode_s)
        answer.logprobs, self._probabilities = self._probabilities or UNSET, []
        answer.warnings = [*self._warnings, *ending.warnings] or UNSET
        answer.ockham = self.report()
        self.finish(answer)


class ChatAnswer(OllamaAnswer):
    """The answer of `/api/chat`."""

    def made(
        self, content: str, thinking: str = "", calls: list[ToolCalled] | UnsetType = UNSET
    ) -> Chatted:
        said = Said(content=content, thinking=thinking or UNSET, tool_calls=calls)
        return Chatted(model=self.name, created_at=now(), message=said)

    def finish(self, answer: Answered) -> None:
        pass


class GenerateAnswer(OllamaAnswer):
    """The answer of `/api/generate`."""

    def __init__(self, *given: Any, tells_context: bool) -> None:
        super().__init__(*given)
        self._tells_context = tells_context
        self._token_ids: list[int] = []

    def made(
        self, content: str, thinking: str = "", calls: list[ToolCalled] | UnsetType = UNSET
    ) -> Generated:
        thought = thinking or UNSET
        return Generated(model=self.name, created_at=now(), response=content, thinking=thought)

    def finish(self, answer: Answered) -> None:
        if self._tells_context and isinstance(answer, Generated):
            answer.context = [*self.turn.prompt.token_ids, *self._token_ids]

    def _see(self, choice: CompletionOutput) -> None:
        super()._see(choice)
        self._token_ids += choice.token_ids


def _nanoseconds(seconds: float) -> int:
    """At least one: clients divide by it."""
    return max(1, round(seconds * _NS))
