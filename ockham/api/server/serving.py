"""What every route needs: the engine, the settings, and who is let in."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.body import read_body
from ockham.api.server.errors import HttpError, decode, describe
from ockham.api.server.gate import Gate
from ockham.api.server.job import Job
from ockham.api.server.metrics import Metrics
from ockham.api.server.protocol import GenerationRequest
from ockham.api.server.settings import ServerSettings
from ockham.api.server.sse import EventStream
from ockham.core.approximation import Approximation
from ockham.core.errors import InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.model.hub import served_names

T = TypeVar("T")

READING_S = 2.0
"""What a client has, beyond the time that its request may take, to read the last of the answer."""


@dataclass(slots=True)
class Serving:
    """The parts of a running server. Each app has one, as `app.state.serving`."""

    llm: AsyncLLM
    settings: ServerSettings
    gate: Gate
    metrics: Metrics
    created_s: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names that requests may call the model by; the first is the one in answers."""
        return self.settings.served_model_names or served_names(self.llm.config.model)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: within one, the same seed gives the same tokens where the backend
        promises bits."""
        return f"fp_{self.llm.ready.numerics_id}"

    def check_model(self, name: str | None) -> None:
        """Raise `HttpError` 404 if the model is called by a name that it does not have."""
        if name is not None and name not in self.names:
            raise HttpError(
                404,
                f"There is no model {describe(name)} here; there is {', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )

    def token_text(self, token: int) -> str:
        tokenizer = self.llm.tokenizer
        return f"token_id:{token}" if tokenizer is None else tokenizer.token_text(token)

    async def decode_prompt(self, tokens: list[int]) -> str:
        """The text of a prompt that came as token ids, special tokens and all."""
        tokenizer = self.llm.need_tokenizer()
        return await self.llm.in_thread(len(tokens), lambda: tokenizer.decode(tokens, False))

    def job(
        self,
        request_id: str,
        prompts: list[list[int]],
        params: SamplingParams,
        request: GenerationRequest,
        approximations: Sequence[Approximation | None] = (),
    ) -> Job:
        """Raises InvalidRequest if a prompt and the tokens asked for exceed the context: cutting
        the answer short would be a parameter dropped in silence."""
        context, asked = self.llm.ready.max_model_len, params.max_tokens or 0
        for tokens in prompts:
            if len(tokens) < context < len(tokens) + asked:
                room = context - len(tokens)
                raise InvalidRequest(
                    f"The context is {context} tokens: the prompt has {len(tokens)}, and "
                    f"max_tokens asks for {asked} more. Lower it to {room} or less, leave it out, "
                    "or shorten the prompt.",
                    "max_tokens",
                )
        return Job(
            self.llm,
            self.gate,
            request_id,
            prompts,
            params,
            self.settings.request_timeout_s,
            request.cache_salt or "",
            approximations,
            request.cache_hint,
        )

    def stream(self, events: AsyncGenerator[bytes, None]) -> EventStream:
        """The response that sends a job's events."""
        return EventStream(
            events,
            keep_alive_s=self.settings.keep_alive_s,
            timeout_s=self.settings.request_timeout_s + READING_S,
        )


def serving(request: Request) -> Serving:
    """The server that got the request."""
    found: Serving = request.app.state.serving
    return found


async def read(request: Request, kind: type[T]) -> T:
    """The request's body as `kind`. Raises `InvalidRequest` or `HttpError`."""
    return decode(await read_body(request, serving(request).settings.max_body_bytes), kind)


def request_id(request: Request) -> str:
    """The id that the caller gave the request, or that it was given here."""
    found: str = request.scope.get("ockham.request_id") or new_request_id()
    return found


def new_request_id() -> str:
    return uuid.uuid4().hex
