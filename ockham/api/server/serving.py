"""One model as routes see it: its engine, its names, and who is let in. And reading of bodies."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from starlette.requests import Request

from ockham.api.adapters import adapter_asks
from ockham.api.async_llm import AsyncLLM
from ockham.api.prompts import Encoded
from ockham.api.server.body import Lease, read_body
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import decode
from ockham.api.server.fields import UnknownFields
from ockham.api.server.gate import Gate
from ockham.api.server.house import NO_NAMES, check_does, chosen_by, house, no_such_model
from ockham.api.server.job import Job, naming
from ockham.api.server.kept import KeptPrefixes
from ockham.api.server.protocol import ChatMessage, ChatRequest, GenerationRequest
from ockham.api.server.settings import ServerSettings
from ockham.api.server.sse import EventStream
from ockham.api.server.structure import Counter, Most
from ockham.api.server.traces import ASKED
from ockham.core.asks import Ask
from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import Request as EngineRequest

T = TypeVar("T")


class AsksForChat(Protocol):
    """The body of another protocol's request."""

    def chat(self) -> ChatRequest:
        """The same request as chat completions have it. Raises `InvalidRequest`, which names the
        field of the body. Called in a thread where the body is large."""


F = TypeVar("F", bound=AsksForChat)

_numbers = itertools.count()

PASSED_OVER = "ockham.passed_over"
"""Where a request's scope holds the fields that were passed over and must be told of."""
METERED = "ockham.metered"
"""Where it holds the `UsageMeter` of what is answered."""
READING_S = 2.0
"""What a client has, beyond the time that its request may take, to read the last of the answer."""


@dataclass(slots=True)
class Serving:
    """A model that is loaded, as a server serves it."""

    llm: AsyncLLM
    names: tuple[str, ...]
    """The names that requests may call the model by; the first is the one in answers."""
    settings: ServerSettings
    gate: Gate
    adapters: dict[str, str]
    """The adapters that requests may name as the model: their directories."""
    kept: KeptPrefixes

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: within one, the same seed gives the same tokens where the backend
        promises bits."""
        return f"fp_{self.llm.ready.numerics_id}"

    def check_model(self, name: str | None) -> None:
        """Raise `HttpError` 404 if the model is called by a name that it does not have."""
        if name is None or name in NO_NAMES or name in self.names or name in self.adapters:
            return
        raise no_such_model(name, (*self.names, *self.adapters))

    def check_does(self, *tasks: str) -> None:
        """Raise `InvalidRequest` if the model does none of these tasks."""
        check_does(tasks, self.llm.ready.tasks, self.names[0])

    def answer_name(self, name: str | None) -> str:
        """The name in the answer to a request for the model of a name."""
        return name if name is not None and name in self.adapters else self.names[0]

    def adapter_asks(self, name: str | None) -> dict[str, Ask]:
        """What a request for the model of a name asks of adapters."""
        path = None if name is None else self.adapters.get(name)
        if name is None or path is None:
            return {}
        return adapter_asks(self.llm.config.adapter, name, path)

    def token_text(self, token: int) -> str:
        tokenizer = self.llm.tokenizer
        return f"token_id:{token}" if tokenizer is None else tokenizer.token_text(token)

    def token_bytes(self, token: int) -> bytes:
        tokenizer = self.llm.tokenizer
        return (
            self.token_text(token).encode() if tokenizer is None else tokenizer.token_bytes(token)
        )

    def decode_here(self, tokens: list[int]) -> str:
        """The text of a prompt that came as token ids, special tokens and all, by whichever thread
        calls this."""
        return self.llm.prompts.tokenizer.decode(tokens, False)

    def check_room(self, http: Request, request: GenerationRequest, sequences: int) -> None:
        """Raise `InvalidRequest` if the model generates no text, and what the gate does if so many
        sequences would not be let in now."""
        self.check_does("generate")
        self.gate.check(sequences, _tenant(http, request))

    def job(
        self,
        http: Request,
        prompts: Sequence[Encoded],
        params: SamplingParams | Sequence[SamplingParams],
        body: GenerationRequest,
    ) -> Job:
        """The job that answers prompts; `params` are of all of them, or of each. Raises
        InvalidRequest if a prompt and the tokens asked for exceed the context: cutting the answer
        short would be a parameter dropped in silence."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        context = self.llm.ready.max_model_len
        for index, prompt in enumerate(prompts):
            length, asked = len(prompt.token_ids), each[index].max_tokens or 0
            if length < context < length + asked:
                room, field = context - length, body.length_field
                with naming(index, len(prompts)):
                    raise InvalidRequest(
                        f"The context is {context} tokens: the prompt has {length}, and "
                        f"{field} asks for {asked} more. Lower it to {room} or less, leave it "
                        "out, or shorten the prompt.",
                        field,
                    )
        http.scope[ASKED] = body.model, each[0]
        name, salt = engine_name(http), caller_of(http).salt(body.cache_salt)
        asks = self.adapter_asks(body.model)
        return self.job_of(
            [
                prompt.request(
                    f"{name}.{index}",
                    each[index],
                    cache_salt=salt,
                    cache_hint=body.cache_hint,
                    asks=asks,
                    tenant=_tenant(http, body),
                    priority=body.priority or 0,
                    progress=bool(body.stream and body.watches_prompt),
                )
                for index, prompt in enumerate(prompts)
            ]
        )

    def pinning(self, http: Request, prompt: Encoded, salt: str, tenant: str) -> Job:
        """A job that computes a prefix. The last token of a prompt is computed too, and one is
        generated and thrown away."""
        params = SamplingParams(max_tokens=1, temperature=0.0)
        name = f"{engine_name(http)}.0"
        return self.job_of([prompt.request(name, params, cache_salt=salt, tenant=tenant)])

    def job_of(self, requests: Sequence[EngineRequest]) -> Job:
        return Job(self.llm, self.gate, requests, self.settings.request_timeout_s)

    def stream(
        self,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[OckhamError], bytes],
        *,
        alive: Callable[[], bytes | None],
        media_type: str,
    ) -> EventStream:
        """The response that sends a job's events."""
        return EventStream(
            events,
            failed,
            keep_alive_s=self.settings.keep_alive_s,
            timeout_s=self.settings.request_timeout_s + READING_S,
            alive=alive,
            media_type=media_type,
        )


def serving(request: Request) -> Serving:
    """The model that a request has chosen (`ockham.api.server.house.choose`)."""
    found = chosen_by(request.scope)
    assert found is not None, "a route chooses a model before it is asked for"
    return found


def _tenant(http: Request, request: GenerationRequest) -> str:
    return caller_of(http).tenant(request.cache_salt, request.label)


def engine_name(http: Request) -> str:
    """What the engine calls a caller's requests. Callers may send the same X-Request-Id twice; the
    engine must tell the two apart."""
    return f"{request_id(http)}#{next(_numbers)}"


async def read(request: Request, kind: type[T], *, lenient: bool = False) -> T:
    """The request's body as `kind`. Raises `InvalidRequest` or `HttpError`.

    Unknown fields that are passed over are left in the scope, for the answer's header and the log;
    `lenient`: they are not refused, whatever the operator said of OpenAI's API.
    """

    def parse(body: bytearray, settings: ServerSettings, passed_over: list[str]) -> T:
        counter = _counted(body, settings)
        unknown = _lenient(settings) if lenient else settings.unknown_fields
        parsed = decode(body, kind, unknown, passed_over)
        _check_messages(getattr(parsed, "messages", None) or [], counter, settings)
        return parsed

    return await _read(request, parse)


async def read_chat(request: Request, kind: type[F]) -> tuple[F, ChatRequest]:
    """The request's body as `kind`, which another protocol has, and the chat that it asks for.
    Fields that are unknown are passed over: the clients of such protocols send what their own
    servers need. Raises `InvalidRequest` or `HttpError`."""

    def parse(
        body: bytearray, settings: ServerSettings, passed_over: list[str]
    ) -> tuple[F, ChatRequest]:
        counter = _counted(body, settings)
        parsed = decode(body, kind, _lenient(settings), passed_over)
        chat = parsed.chat()
        _check_messages(chat.messages, counter, settings)
        return parsed, chat

    return await _read(request, parse)


async def _read(request: Request, parse: Callable[[bytearray, ServerSettings, list[str]], T]) -> T:
    server, lease = house(request), _lease(request)
    body = await read_body(request, server.settings, lease)
    lease.body_bytes = len(body)
    passed_over: list[str] = []
    found = await server.threads.in_thread(
        len(body), lambda: parse(body, server.settings, passed_over)
    )
    pass_over(request, *passed_over)
    return found


def pass_over(request: Request, *names: str) -> None:
    """Tell in the answer's header and in the log that these fields of the body were not kept."""
    if names and house(request).settings.unknown_fields != "ignore":
        request.scope[PASSED_OVER] = [*request.scope.get(PASSED_OVER, ()), *names]


def _lenient(settings: ServerSettings) -> UnknownFields:
    return "ignore" if settings.unknown_fields == "ignore" else "warn"


def _counted(body: bytearray, settings: ServerSettings) -> Counter:
    """What counts the parts of a request; those of the body are counted before anything is made of
    them."""
    counter = Counter(
        Most(settings.max_json_items, settings.max_json_values, settings.max_json_depth)
    )
    counter.count(body)
    return counter


def _check_messages(
    messages: Sequence[ChatMessage], counter: Counter, settings: ServerSettings
) -> None:
    if len(messages) > settings.max_messages:
        raise InvalidRequest(
            f"messages has {len(messages)} entries, at most {settings.max_messages}; leave some "
            "out, or start the server with a larger --max-messages.",
            "messages",
        )
    for number, message in enumerate(messages):
        for text in message.arguments():  # JSON as well, which the template gets as objects
            counter.count(
                text.encode(errors="surrogatepass"), f"With its arguments, messages[{number}]"
            )


def body_bytes(request: Request) -> int:
    """How large the body was that has been read; by this goes which thread works on it."""
    return _lease(request).body_bytes


def _lease(request: Request) -> Lease:
    found: Lease = request.scope["ockham.lease"]
    return found


def entries(outputs: Sequence[RequestOutput]) -> int:
    """What an answer is made of: tokens, and log probabilities."""
    count = 0
    for output in outputs:
        for entry in output.prompt_logprobs or ():
            count += len(entry or ())
        for choice in output.outputs:
            count += len(choice.token_ids) + sum(map(len, choice.logprobs or ()))
    return count


def request_id(request: Request) -> str:
    """The id that the caller gave the request, or that it was given here."""
    found: str = request.scope.get("ockham.request_id") or new_request_id()
    return found


def new_request_id() -> str:
    return uuid.uuid4().hex
