"""`ReplyAnswer`: the answer to a chat in a protocol other than OpenAI's chat completions.

Such protocols know one answer to a request, made of parts: thoughts, content, calls of tools. A
subclass says how its protocol writes these, whole and piece by piece; what is a part, what is
counted and what ends a stream is decided here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import msgspec
from starlette.requests import Request

from ockham.api.server.answer import Answer
from ockham.api.server.serving import serving
from ockham.api.server.telling import Telling, told_whole
from ockham.api.server.turn import Turn
from ockham.core.outputs import CompletionOutput, Reply, RequestOutput
from ockham.text.reply.splitter import ReplyDelta


class Ending(msgspec.Struct):
    """How an answer ended. `finish_reason` is "tool_calls" where it ended in calls, else that of
    `CompletionOutput`; `stop_reason` the stop string or token that ended it."""

    finish_reason: str
    stop_reason: int | str | None
    warnings: list[str]


class ReplyAnswer(Answer):
    """Writes one reply. A stream is `begin`, `tell` for whatever is new, `end`."""

    def __init__(self, http: Request, turn: Turn) -> None:
        super().__init__(serving(http), http, [turn.prompt], turn.request)
        self.turn = turn
        self.model = self.server.answer_name(turn.request.model)
        self._telling = Telling(turn.plan, turn.params, turn.text, turn.begun)

    @property
    def streams(self) -> bool:
        return bool(self.turn.request.stream)

    @abstractmethod
    def whole(self, reply: Reply, ending: Ending) -> bytes:
        """The body of an answer that is not streamed."""

    @abstractmethod
    def begin(self) -> Iterator[bytes]:
        """What a stream says before the first part."""

    @abstractmethod
    def tell(self, new: ReplyDelta, choice: CompletionOutput) -> Iterator[bytes]:
        """What a stream says of what is new; `new` may be empty. `choice` has the tokens that came
        with it, and their log probabilities."""

    @abstractmethod
    def end(self, ending: Ending) -> Iterator[bytes]:
        """What a stream says once the answer is finished; the meter has counted all of it."""

    def body(self, outputs: list[RequestOutput]) -> bytes:
        ((choice,),) = (output.outputs for output in outputs)
        turn, tokenizer = self.turn, self.server.llm.tokenizer
        reply, thought = told_whole(
            turn.plan, turn.params, turn.text, choice, tokenizer, turn.begun
        )
        self.meter.reasoning_tokens = thought
        return self.whole(reply, _ending(choice, bool(reply.tool_calls), reply.warnings))

    def unread_call(self, index: int) -> str | None:
        """The text of a call of a stream that turned out to be none; None for a call."""
        return self._telling.unread_call(index)

    def opening(self) -> bytes:
        return b"".join(self.begin())

    def news(self, prompt: int, output: RequestOutput) -> bytes:
        written: list[bytes] = []
        for choice in output.outputs:
            written += self.tell(self._telling.add(choice), choice)
            if choice.finish_reason is not None:
                told = self._telling
                self.meter.reasoning_tokens = told.reasoning_tokens(self.server.llm.tokenizer)
                written += self.end(_ending(choice, told.has_calls, told.warnings()))
        return b"".join(written)

    def closing(self) -> bytes:
        return b""


def _ending(choice: CompletionOutput, has_calls: bool, warnings: list[str]) -> Ending:
    reason = choice.finish_reason or "stop"
    if has_calls and reason == "stop":
        reason = "tool_calls"
    return Ending(reason, choice.stop_reason, list(dict.fromkeys(warnings)))
