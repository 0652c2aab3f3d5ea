"""`POST /infill`: the text between two others, with llama-server's fields."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from ockham.api.prompts import Encoded
from ockham.api.server.answer import Answer
from ockham.api.server.asking import TakesAsks, with_asks
from ockham.api.server.errors import error_body
from ockham.api.server.fields import ANY
from ockham.api.server.house import GENERATE, choose
from ockham.api.server.job import Item, Job
from ockham.api.server.openapi.described import describes
from ockham.api.server.protocol import CompletionRequest
from ockham.api.server.serving import Serving, body_bytes, read
from ockham.api.server.sse import event
from ockham.api.server.timings import Progress, Timings
from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.outputs import RequestOutput
from ockham.text.fill_in import Extra

DEFAULT_PREDICT = 128


class ExtraFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Text of another file."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"time": (ANY,)}

    text: str
    filename: str = "tmp"


class InfillBody(TakesAsks, kw_only=True, forbid_unknown_fields=True):
    """`POST /infill`. Fields that are not named here are passed over.

    `prompt` is text that follows `input_prefix` at once: editors send the line that is being
    written there. `t_max_predict_ms` ends the answer after the line that is being written once so
    much time has passed since its first token; 0: no limit. `response_fields` names what the answer
    shall hold; "timings/prompt_n" is a field of a field.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(
        ("samplers", "cache_prompt", "n_indent", "t_max_prompt_ms", "id_slot"), (ANY,)
    )

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[ExtraFile] = []
    prompt: str = ""
    model: str | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    t_max_predict_ms: float = 0.0
    response_fields: list[str] | None = None
    cache_salt: str | None = None
    user: str | None = None

    def completion(self) -> CompletionRequest:
        """The same as completions have it. Raises `InvalidRequest`."""
        predict = DEFAULT_PREDICT if self.n_predict is None else self.n_predict
        if predict < -1 or predict == 0:
            raise InvalidRequest(
                f"n_predict must be at least 1, or -1 for all that there is room for, got "
                f"{predict}.",
                "n_predict",
            )
        kind: type[CompletionRequest] = with_asks(CompletionRequest, self.asking)
        return kind(
            prompt="",
            model=self.model,
            max_tokens=None if predict == -1 else predict,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repeat_penalty,
            stop=self.stop or None,
            cache_salt=self.cache_salt,
            user=self.user,
            **self.seeing(),
            **{name: getattr(self, name) for name in self.asking},
        )


class Filled(msgspec.Struct, kw_only=True, omit_defaults=False):
    """The answer, or a part of a stream."""

    index: int = 0
    content: str
    tokens: list[int]
    id_slot: int = -1
    stop: bool
    model: str | UnsetType = UNSET
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    tokens_cached: int | UnsetType = UNSET
    has_new_line: bool | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    stop_type: str | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET


@describes(
    takes=InfillBody,
    gives=dict[str, Any],
    streams=Filled,
    lenient=True,
    example={
        "input_prefix": "def add(a, b):\n    return ",
        "input_suffix": "\n\nprint(add(1, 2))\n",
        "n_predict": 16,
    },
)
async def infill(http: Request) -> Response:
    """Fill in what stands between two texts."""
    body = await read(http, InfillBody, lenient=True)
    request = body.completion()
    request.check()
    server = await choose(http, body.model, GENERATE)
    if len(body.input_extra) > server.settings.max_prompts:
        raise InvalidRequest(
            f"input_extra has {len(body.input_extra)} entries, at most "
            f"{server.settings.max_prompts}; leave some out.",
            "input_extra",
        )
    defaults = server.llm.default_parameters
    params = request.sampling_params(
        defaults, max_tokens=request.max_tokens, logprobs=None, prompt_logprobs=None
    )
    fill_in = server.llm.prompts.tokenizer.fill_in
    if fill_in is not None:
        params = fill_in.ending(params)
    server.check_room(http, request, params.sequences)
    context = server.llm.ready.max_model_len
    room = context - min(context // 2, request.max_tokens or DEFAULT_PREDICT)
    extra = [Extra(each.filename, each.text) for each in body.input_extra]
    prompt, cut = await server.llm.in_thread(
        body_bytes(http),
        lambda: server.llm.prompts.read_fill_in(
            body.input_prefix + body.prompt, body.input_suffix, extra, room
        ),
    )
    job = server.job(http, [prompt], params, request)
    return await _Answer(server, http, body, prompt, cut).respond(job)


class _Answer(Answer):
    """What is filled in. A whole answer is made of the deltas, so that it can end in time."""

    prefix = "infill"

    def __init__(
        self, server: Serving, http: Request, body: InfillBody, prompt: Encoded, cut: bool
    ) -> None:
        super().__init__(server, http, [prompt], body)
        self._body_asked = body
        self._prompt_tokens, self._cut = len(prompt.token_ids), cut
        self._content: list[str] = []
        self._tokens: list[int] = []
        self._first_s: float | None = None
        self._reason: str | None = None
        self._stopped_by: int | str | None = None

    @property
    def streams(self) -> bool:
        return self._body_asked.stream

    async def items(self, job: Job) -> AsyncGenerator[Item, None]:
        """What comes, until the time of the request is over and a line is whole."""
        async with aclosing(job.deltas()) as items:
            async for item in items:
                yield item
                if self._is_over():
                    return

    def _is_over(self) -> bool:
        limit_ms = self._body_asked.t_max_predict_ms
        if limit_ms <= 0 or self._first_s is None or self._reason is not None:
            return False
        spent_ms = (time.monotonic() - self._first_s) * 1000.0
        return spent_ms > limit_ms and "\n" in "".join(self._content)

    async def _body(self, job: Job) -> bytes:
        async with aclosing(self.items(job)) as items:
            async for _, output in items:
                self.meter.add(output)
                self._take(output)
        return msgspec.json.encode(self._asked_for(self._filled("".join(self._content), True)))

    def body(self, outputs: list[RequestOutput]) -> bytes:
        raise AssertionError("a whole answer is collected from deltas")

    def _take(self, output: RequestOutput) -> tuple[str, list[int]]:
        text, tokens = "", []
        for choice in output.outputs:
            text += choice.text
            tokens += choice.token_ids
            if choice.finish_reason is not None:
                self._reason, self._stopped_by = choice.finish_reason, choice.stop_reason
        self._content.append(text)
        self._tokens += tokens
        if tokens and self._first_s is None:
            self._first_s = time.monotonic()
        return text, tokens

    def news(self, prompt: int, output: RequestOutput) -> bytes:
        text, tokens = self._take(output)
        if not text and not tokens:
            return b""
        part = Filled(
            content=text,
            tokens=tokens,
            stop=False,
            tokens_predicted=len(self._tokens),
            tokens_evaluated=self._prompt_tokens,
            timings=self.timings_so_far(),
        )
        return event(msgspec.json.encode(part))

    def progressed(self, progress: Progress) -> bytes:
        part = Filled(content="", tokens=[], stop=False, prompt_progress=progress)
        return event(msgspec.json.encode(part))

    def closing(self) -> bytes:
        return event(msgspec.json.encode(self._asked_for(self._filled("", False))))

    def failed(self, error: OckhamError) -> bytes:
        return event(error_body(error))

    def _filled(self, content: str, whole: bool) -> Filled:
        course = self.meter.course
        word = self._stopped_by if isinstance(self._stopped_by, str) else ""
        kind = "word" if word else "eos" if self._reason == "stop" else "limit"
        finished = self._reason is not None
        return Filled(
            content=content,
            tokens=self._tokens if whole else [],
            stop=True,
            model=self.server.answer_name(self._body_asked.model),
            tokens_predicted=len(self._tokens),
            tokens_evaluated=self._prompt_tokens,
            tokens_cached=course.ledger.prompt_tokens_reused,
            has_new_line="\n" in "".join(self._content),
            truncated=self._cut,
            stop_type=kind,
            stopping_word=word,
            timings=course.timings(self.server.llm.ready.drafters)
            if finished
            else course.timings_so_far(),
        )

    def _asked_for(self, filled: Filled) -> Any:
        """The fields that were asked for; all of them if none were named."""
        wanted = self._body_asked.response_fields
        if not wanted:
            return filled
        known: dict[str, Any] = msgspec.to_builtins(filled)
        found = {}
        for path in wanted:
            value: Any = known
            for name in path.split("/"):
                value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
            if value is not UNSET:
                found[path] = value
        return found
