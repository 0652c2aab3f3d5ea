"""A client of any OpenAI-compatible server: sends a workload at its times and times the answers."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ockham.core.errors import OckhamError
from ockham.lab.workloads import Message, Request, arrival_times

if TYPE_CHECKING:
    from httpx import AsyncClient


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send to. `model` None asks for the first that the server has."""

    base_url: str
    model: str | None = None
    api_key: str | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Sending:
    """How a workload is sent.

    `rate` is the mean number of sessions that begin in a second, at random times (Poisson); inf
    begins all at once, None takes the times of the requests themselves. The times do not wait for
    the server (open loop), as long as less than `concurrency` requests are in flight.
    """

    rate: float | None = None
    concurrency: int = 64
    seed: int = 0
    ignore_eos: bool = False
    recorded_answers: bool = False
    """Continue chats with the recorded answers instead of the server's."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request."""
    pauses: bool = True
    """Whether a session waits before its next request as long as the workload says."""


@dataclass(slots=True)
class Answer:
    """What one request gave. Seconds since it was sent; `error` is None if all went well."""

    id: str
    lag_s: float = 0.0
    """How much later than planned it was sent, because the client was busy."""
    first_s: float = math.nan
    end_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    """Times between two pieces of the same choice."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    choices: int = 1
    text: str = ""
    """The first choice."""
    error: str | None = None

    @property
    def per_token_s(self) -> float:
        """Time per output token after the first; NaN where there is no second one."""
        more = self.generated_tokens / self.choices - 1
        return (self.end_s - self.first_s) / more if more > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Traffic:
    """The answers to a workload, in its order."""

    model: str
    answers: list[Answer]
    seconds: float
    client_cpu_s: float
    """Processor time of the client: near `seconds`, it was the client that was slow."""


async def send(server: Server, requests: Sequence[Request], how: Sending) -> Traffic:
    """Send a workload. What a single request suffers is told in its answer.

    Raises OckhamError if the server does not answer at all.
    """
    import httpx

    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    limits = httpx.Limits(
        max_connections=how.concurrency, max_keepalive_connections=how.concurrency
    )
    async with httpx.AsyncClient(
        base_url=server.base_url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=server.timeout_s,
        limits=limits,
        trust_env=False,
    ) as client:
        model = await _served_model(client, server.model)
        # The first request pays for what only the first one pays for.
        started, cpu = time.perf_counter(), time.process_time()
        answers = await _Sender(client, model, requests, how).send_all()
        return Traffic(model, answers, time.perf_counter() - started, time.process_time() - cpu)


async def _served_model(client: AsyncClient, wanted: str | None) -> str:
    import httpx

    try:
        response = await client.get("/v1/models")
        response.raise_for_status()
        return wanted or str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise OckhamError(
            f"{client.base_url} does not say which models it has ({error}). Is the server up? "
            "Start one with `ockham serve`, or set --base-url or --api-key."
        ) from error


class _Sender:
    """One workload on its way."""

    def __init__(
        self, client: AsyncClient, model: str, requests: Sequence[Request], how: Sending
    ) -> None:
        self.client, self.model, self.requests, self.how = client, model, requests, how
        self.room = asyncio.Semaphore(how.concurrency)
        self.chats: dict[str, list[Message]] = {}

    async def send_all(self) -> list[Answer]:
        """Every session runs on its own; within one, each request waits for the one before."""
        tasks: dict[str, asyncio.Task[Answer]] = {}
        origin = time.perf_counter()
        arrivals = arrival_times(self.requests, self.how.rate, self.how.seed)
        for request, arrival in zip(self.requests, arrivals, strict=True):
            before = tasks[request.after] if request.after is not None else None
            tasks[request.id] = asyncio.create_task(
                self._send_in_turn(request, before, origin + arrival)
            )
        return await asyncio.gather(*tasks.values())

    async def _send_in_turn(
        self, request: Request, before: asyncio.Task[Answer] | None, planned: float
    ) -> Answer:
        if before is not None:
            earlier = await before
            if earlier.error is not None:
                return Answer(request.id, error=f"not sent: {earlier.id} before it failed")
            pause = request.arrival_s if self.how.pauses else 0.0
            planned = time.perf_counter() + pause
            self._continue_chat(request, earlier)
        elif request.messages is not None:
            self.chats[request.id] = list(request.messages)
        await asyncio.sleep(max(0.0, planned - time.perf_counter()))
        lag_s = max(0.0, time.perf_counter() - planned)
        async with self.room:
            answer = await _stream(self.client, *self._body(request), request.n, request.id)
        answer.lag_s = lag_s
        return answer

    def _continue_chat(self, request: Request, earlier: Answer) -> None:
        if request.messages is None or request.after is None:
            return
        said = earlier.text
        if self.how.recorded_answers:
            recorded = next(r.answer for r in self.requests if r.id == request.after)
            said = said if recorded is None else recorded
        before = self.chats.get(request.after, [])
        self.chats[request.id] = [
            *before,
            {"role": "assistant", "content": said},
            *request.messages,
        ]

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.how.extra_body,
        }
        if request.n > 1:
            body["n"] = request.n
        if self.how.ignore_eos:
            body["ignore_eos"] = True
        if request.messages is not None:
            return "/v1/chat/completions", {**body, "messages": self.chats[request.id]}
        prompt = request.prompt if request.prompt is not None else request.prompt_token_ids
        return "/v1/completions", {**body, "prompt": prompt}


async def _stream(
    client: AsyncClient, path: str, body: dict[str, Any], choices: int, name: str
) -> Answer:
    """Stream one answer and time its pieces."""
    import httpx

    answer = Answer(name, choices=choices)
    started = time.perf_counter()
    last: dict[int, float] = {}
    try:
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                answer.error = f"status {response.status_code}: {text[:300]}"
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    answer.error = str(event["error"])[:300]
                    return answer
                _take(answer, event, time.perf_counter() - started, last)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    if answer.error is None and (math.isnan(answer.first_s) or not answer.generated_tokens):
        answer.error = "the stream ended without text or without usage"
    return answer


def _take(answer: Answer, event: dict[str, Any], now_s: float, last: dict[int, float]) -> None:
    """Book one event of a stream."""
    usage = event.get("usage")
    if usage:
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.generated_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in event.get("choices") or ():
        index = choice.get("index", 0)
        delta = choice.get("delta")
        text = choice.get("text", "") if delta is None else delta.get("content")
        if delta is not None and not text and not choice.get("finish_reason"):
            continue  # the role, which comes before anything is generated
        if math.isnan(answer.first_s):
            answer.first_s = now_s
        if index in last:
            answer.gaps_s.append(now_s - last[index])
        last[index] = answer.end_s = now_s
        if index == 0:
            answer.text += text or ""
