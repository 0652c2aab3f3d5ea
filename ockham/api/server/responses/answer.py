"""From what the model says to a response, whole or as events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request

from ockham.api.server.errors import error_message
from ockham.api.server.logprobs import chat_logprobs
from ockham.api.server.reply_answer import Ending, ReplyAnswer
from ockham.api.server.responses.request import Asked, TextFormat
from ockham.api.server.responses.stream import Events, Items
from ockham.api.server.responses.wire import Fault, IncompleteDetails, Response, usage_of
from ockham.api.server.serving import request_id
from ockham.api.server.sse import event
from ockham.api.server.timings import Progress
from ockham.api.server.turn import Turn
from ockham.api.server.wire import ChosenLogprob, now_s
from ockham.core.errors import OckhamError
from ockham.core.outputs import CompletionOutput, Reply, RequestOutput
from ockham.text.reply.splitter import CallDelta, ReplyDelta
from ockham.text.text_stream import places

_STATUSES = {
    "length": "incomplete",
    "repetition": "incomplete",
    "abort": "failed",
    "error": "failed",
}
"""Why an answer ended -> its status, where that is not `completed`."""


class ResponseAnswer(ReplyAnswer):
    """Writes a response."""

    prefix = "resp"

    def __init__(self, http: Request, turn: Turn, asked: Asked) -> None:
        super().__init__(http, turn)
        self.id = f"resp_{request_id(http)}"
        self._wanted = asked
        self._write = Events(silent=not self.streams)
        self._items = Items(
            self._write,
            asked.tools,
            self.unread_call if self.streams else lambda number: None,
            summary=asked.wants_summary,
            seals=asked.seals,
        )
        self._logprobs: list[ChosenLogprob] = []
        """Of tokens that have come and are not told of."""
        self._choice: CompletionOutput | None = None

    def body(self, outputs: list[RequestOutput]) -> bytes:
        ((self._choice,),) = (output.outputs for output in outputs)
        return super().body(outputs)

    def whole(self, reply: Reply, ending: Ending) -> bytes:
        assert self._choice is not None, "`body` has set it"
        self._see(self._choice)
        if self._logprobs and (reply.reasoning or reply.tool_calls):
            self._logprobs = self._of_content(self._choice, reply.content or "")
        calls = [
            CallDelta(index, call.id, call.name, call.arguments)
            for index, call in enumerate(reply.tool_calls)
        ]
        deque(self._say(ReplyDelta(reply.content or "", reply.reasoning or "", calls)), maxlen=0)
        deque(self._items.end(_status(ending)), maxlen=0)
        return msgspec.json.encode(self._finished(ending))

    def begin(self) -> Iterator[bytes]:
        yield self._write("response.created", response=self._response("in_progress"))
        yield self._write("response.in_progress", response=self._response("in_progress"))

    def progressed(self, progress: Progress) -> bytes:
        return self._write("response.prompt_progress", prompt_progress=progress)

    def tell(self, new: ReplyDelta, choice: CompletionOutput) -> Iterator[bytes]:
        self._see(choice)
        yield from self._say(new)

    def end(self, ending: Ending) -> Iterator[bytes]:
        status = _status(ending)
        if self._logprobs and self._items.speaking:
            yield from self._items.say("", self._taken())
        if self._items.empty:
            yield from self._items.say("", [])
        yield from self._items.end(status)
        yield self._write(f"response.{status}", response=self._finished(ending))

    def failed(self, error: OckhamError) -> bytes:
        first = self.open()
        code, message = _code(error), error_message(error)
        response = self._response("failed")
        response.error = Fault(code, message)
        told = self._write("error", code=code, message=message, param=getattr(error, "param", None))
        return b"".join([first, told, self._write("response.failed", response=response)])

    def sign_of_life(self) -> bytes:
        """Comments are no events, and a client may wait for events only so long. A stream that
        takes long to begin begins with what it says first of all."""
        return self.open() or event(
            b'{"type":"keepalive","sequence_number":%d}' % self._write.count, "keepalive"
        )

    def _say(self, new: ReplyDelta) -> Iterator[bytes]:
        """Tell of what is new. A call that goes on comes before the text that follows it."""
        calls = new.calls
        while calls and calls[0].name is None:
            yield from self._items.call(calls[0])
            calls = calls[1:]
        if new.reasoning:
            if not new.content:
                self._logprobs.clear()
            yield from self._items.think(new.reasoning)
        if new.content:
            yield from self._items.say(new.content, self._taken())
        for call in calls:
            yield from self._items.call(call)
        if new.calls:
            self._logprobs.clear()

    def _taken(self) -> list[ChosenLogprob]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _see(self, choice: CompletionOutput) -> None:
        """Keep the log probabilities of tokens, where they are asked for."""
        request = self.turn.request
        if request.logprobs and choice.logprobs:
            entries, server = choice.logprobs, self.server
            top = request.top_logprobs or 0
            self._logprobs += chat_logprobs(
                choice.token_ids, entries, top, server.token_text, server.token_bytes
            ).content

    def _of_content(self, choice: CompletionOutput, content: str) -> list[ChosenLogprob]:
        """The log probabilities of the tokens of the text; of all, where it stands in pieces."""
        turn, tokenizer = self.turn, self.server.llm.tokenizer
        start = choice.text.find(content) if content else -1
        if tokenizer is None or start < 0:
            return self._logprobs if content else []
        end = start + len(content)
        skips = turn.plan.skips_special_tokens(turn.params)
        return [
            entry
            for token, at, entry in zip(
                choice.token_ids,
                places(tokenizer, choice.token_ids, skips),
                self._logprobs,
                strict=True,
            )
            if start <= at < end and not tokenizer.is_silent(token, skips)
        ]

    def _finished(self, ending: Ending) -> Response:
        """The response once it is complete, or as far as it came."""
        response = self._response(_status(ending))
        response.completed_at = now_s() if response.status == "completed" else None
        if response.status == "incomplete":
            cut = ending.finish_reason == "length"
            response.incomplete_details = IncompleteDetails(
                "max_output_tokens" if cut else ending.finish_reason
            )
        elif response.status == "failed":
            response.error = Fault("server_error", "The model could not go on with the answer.")
        response.usage = usage_of(self.meter.usage(final=True))
        response.ockham = self.report()
        response.warnings = [*self._wanted.warnings, *ending.warnings] or UNSET
        return response

    def _response(self, status: str) -> Response:
        body, params = self._wanted.body, self.turn.params
        return Response(
            id=self.id,
            created_at=self.created,
            status=status,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            model=self.model,
            output=self._items.done,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            reasoning={"effort": body.reasoning.effort, "summary": body.reasoning.summary},
            safety_identifier=body.safety_identifier,
            temperature=params.temperature,
            text={
                "format": _format_told(body.text.format),
                "verbosity": body.text.verbosity or "medium",
            },
            tool_choice=body.tool_choice or "auto",
            tools=self._wanted.tools_json,
            top_logprobs=body.top_logprobs or 0,
            top_p=params.top_p,
            user=body.user,
            metadata=body.metadata or {},
        )


def _status(ending: Ending) -> str:
    return _STATUSES.get(ending.finish_reason, "completed")


def _code(error: OckhamError) -> str:
    """A code that clients of this protocol know."""
    if code := getattr(error, "code", None):
        return str(code)
    if error.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if 400 <= error.status < 500 and error.status != 408 else "server_error"


def _format_told(asked: TextFormat) -> dict[str, Any]:
    if asked.type != "json_schema":
        return {"type": asked.type}
    return {
        "type": asked.type,
        "name": asked.name,
        "schema": asked.schema,
        "strict": True,
        "description": asked.description,
    }
