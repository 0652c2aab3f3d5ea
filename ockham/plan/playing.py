"""A workload on its way through an engine, in real time or in that of a simulation, and what came
of it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Protocol

import msgspec
import numpy as np

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta
from ockham.engine.messages import Request as EngineRequest
from ockham.lab.workloads import Request, arrival_times

PERCENTILES = (50, 95, 99)


class WaitingClock(Protocol):
    """The time, and a way to let it pass."""

    def __call__(self) -> float: ...

    def stepping(self, begins: bool) -> None:
        """A step begins, or is over."""
        ...

    def wait_until(self, moment_s: float) -> None: ...


class Timed(msgspec.Struct):
    """What one request met with, in seconds since it came; NaN for what did not happen."""

    id: str
    arrival_s: float
    """Since the workload began."""
    queue_s: float = math.nan
    """Until the first step that computed something of it."""
    first_s: float = math.nan
    """Until its first token (TTFT)."""
    end_s: float = math.nan
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    choices: int = 1

    @property
    def per_token_s(self) -> float:
        """Seconds per token after the first (TPOT); NaN where there is no second one."""
        more = self.generated_tokens / self.choices - 1
        return (self.end_s - self.first_s) / more if more > 0 else math.nan


class Spread(msgspec.Struct, frozen=True):
    """Percentiles over requests, in seconds; NaN where none has the figure."""

    p50: float
    p95: float
    p99: float


class Played(msgspec.Struct, kw_only=True):
    """A workload that an engine has answered, in real time or in that of a simulation."""

    requests: list[Timed]
    seconds: float
    """From the start until the last answer."""
    busy_s: float
    """Of them, seconds in which the engine had work."""
    backend_s: float
    """Of those, seconds in the backend's operations."""
    real_s: float
    """Seconds that it took to find this out."""
    steps: int
    preemptions: int
    rows: int
    flops: int
    bytes_read: int
    """Of weights and state."""
    held_bytes: int = 0
    """Of weights, and of the state of the sequences that ran, at most."""
    joules: float | None = None
    """At a stated power; None where none was stated."""

    @property
    def generated_tokens(self) -> int:
        return sum(each.generated_tokens for each in self.requests)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens in a second, of all requests."""
        return self.generated_tokens / self.seconds if self.seconds > 0 else math.nan

    @property
    def ttft(self) -> Spread:
        return _spread([each.first_s for each in self.requests])

    @property
    def tpot(self) -> Spread:
        return _spread([each.per_token_s for each in self.requests])

    @property
    def end_to_end(self) -> Spread:
        return _spread([each.end_s for each in self.requests])

    @property
    def queueing(self) -> Spread:
        return _spread([each.queue_s for each in self.requests])

    def figures(self) -> dict[str, float]:
        """What floors and goals are stated in, by name: `ttft_p95`, `tpot_p50`, `tokens_per_s`,
        `seconds`, `bytes` and so on; without those that are not known."""
        spreads = {
            "ttft": self.ttft,
            "tpot": self.tpot,
            "e2e": self.end_to_end,
            "queue": self.queueing,
        }
        found = {
            f"{name}_p{percent}": float(getattr(spread, f"p{percent}"))
            for name, spread in spreads.items()
            for percent in PERCENTILES
        }
        found |= {
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "flops": float(self.flops),
            "bytes": float(self.bytes_read),
        }
        if self.joules is not None:
            found["joules"] = self.joules
        return {name: value for name, value in found.items() if not math.isnan(value)}


def play(
    engine: Engine,
    requests: Sequence[tuple[Request, Sequence[int]]],
    clock: WaitingClock,
    *,
    rate: float | None = None,
    seed: int = 0,
    pauses: bool = True,
    watts: float | None = None,
    answers: dict[str, list[int]] | None = None,
    between: Callable[[], None] = lambda: None,
) -> Played:
    """Let an engine answer requests, each given with the tokens of its prompt, as they come.

    Each is answered with all the tokens that it asks for. `rate` and `seed` are those of
    `arrival_times`; without `pauses` a session goes on at once when it has an answer. `answers` is
    given the tokens of each request's first answer. `between` is called between steps, and may end
    the run by what it raises. Raises ConfigError for a request that the
    engine can never answer.
    """
    return _Player(engine, requests, clock, answers, pauses, between).play(rate, seed, watts)


class _Player:
    """One workload on its way through one engine."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[tuple[Request, Sequence[int]]],
        clock: WaitingClock,
        answers: dict[str, list[int]] | None,
        pauses: bool,
        between: Callable[[], None],
    ) -> None:
        self._engine, self._clock, self._answers = engine, clock, answers
        self._pauses, self._between = pauses, between
        self._requests = [request for request, _ in requests]
        self._prompts = [list(prompt) for _, prompt in requests]
        self._timed: dict[str, Timed] = {}
        self._coming: list[tuple[float, int]] = []
        self._next: dict[str, list[int]] = {}
        for number, request in enumerate(self._requests):
            if request.after is not None:
                self._next.setdefault(request.after, []).append(number)

    def play(self, rate: float | None, seed: int, watts: float | None) -> Played:
        engine, clock = self._engine, self._clock
        times = arrival_times(self._requests, rate, seed)
        before, steps = msgspec.structs.replace(engine.total), engine.scheduler.steps
        preempted, backend_s = engine.scheduler.preemptions, engine.backend_s
        began, busy_s, real, state_bytes = clock(), 0.0, perf_counter(), 0
        for number, (request, time_s) in enumerate(zip(self._requests, times, strict=True)):
            if request.after is None:
                heapq.heappush(self._coming, (began + time_s, number))
        while self._coming or engine.has_work:
            self._between()
            while self._coming and self._coming[0][0] <= clock():
                self._add(*heapq.heappop(self._coming), began)
            if engine.has_work:
                clock.stepping(True)
                started = clock()
                deltas = engine.step()
                clock.stepping(False)
                self._told(deltas, began)
                busy_s += clock() - started
                state_bytes = max(state_bytes, _state_bytes(engine))
            elif self._coming:
                clock.wait_until(self._coming[0][0])
        after, seconds = engine.total, clock() - began
        return Played(
            requests=[self._timed[request.id] for request in self._requests],
            seconds=seconds,
            busy_s=busy_s,
            backend_s=engine.backend_s - backend_s,
            real_s=perf_counter() - real,
            steps=engine.scheduler.steps - steps,
            preemptions=engine.scheduler.preemptions - preempted,
            rows=after.rows - before.rows,
            flops=after.flops - before.flops,
            bytes_read=after.weight_bytes
            + after.state_read_bytes
            - before.weight_bytes
            - before.state_read_bytes,
            held_bytes=engine.model.weight_bytes + state_bytes,
            joules=None if watts is None else watts * seconds,
        )

    def _add(self, moment_s: float, number: int, began: float) -> None:
        request, prompt = self._requests[number], self._prompts[number]
        self._timed[request.id] = Timed(request.id, moment_s - began, choices=request.n)
        params = SamplingParams(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            n=request.n,
            seed=seed_of(number),
            ignore_eos=True,
        )
        try:
            self._engine.take(
                EngineRequest(
                    request_id=request.id,
                    prompt_token_ids=prompt,
                    params=params,
                    detokenize=self._engine.tokenizer is not None,
                )
            )
        except InvalidRequest as error:
            raise ConfigError(
                f"request {request.id!r} of the workload cannot be answered: {error}"
            ) from error

    def _told(self, deltas: Sequence[Delta], began: float) -> None:
        now_s = self._clock()
        for delta in deltas:
            timed = self._timed[delta.request_id]
            if delta.token_ids and math.isnan(timed.first_s):
                timed.first_s = now_s - began - timed.arrival_s
            timed.generated_tokens += len(delta.token_ids)
            if self._answers is not None and delta.index == 0:
                self._answers.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finished:
                timed.end_s = now_s - began - timed.arrival_s
                if delta.ledger is not None:
                    timed.queue_s = delta.ledger.queue_s
                    timed.prompt_tokens = delta.ledger.prompt_tokens
                    timed.reused_tokens = delta.ledger.prompt_tokens_reused
                for number in self._next.get(delta.request_id, ()):
                    pause_s = self._requests[number].arrival_s if self._pauses else 0.0
                    heapq.heappush(self._coming, (now_s + pause_s, number))


def _state_bytes(engine: Engine) -> int:
    """Of the pages that sequences hold now; what is only kept for later ones can go."""
    free, kept = engine.state.free_pages(), engine.scheduler.evictable()
    return sum(
        max(0, group.pages - f - k) * group.page_bytes
        for group, f, k in zip(engine.state.groups, free, kept, strict=True)
    )


def seed_of(number: int) -> int:
    """The seed of a workload's request, by which its stream of tokens is known."""
    return number + 1


def streams_of(
    requests: Sequence[tuple[Request, Sequence[int]]],
    answers: Mapping[str, Sequence[int]],
    vocabulary: int,
) -> dict[int, list[int]]:
    """The tokens of each request and its answer, by `seed_of`. An answer that is not known, or too
    short, goes on with made-up tokens, which nobody drafts."""
    found = {}
    for number, (request, prompt) in enumerate(requests):
        answer = list(answers.get(request.id, ()))[: request.max_tokens]
        more = request.max_tokens - len(answer)
        made_up = np.random.default_rng(number).integers(0, vocabulary, more).tolist()
        found[seed_of(number)] = [*prompt, *answer, *made_up]
    return found


def _spread(values: Sequence[float]) -> Spread:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(*np.percentile(known, PERCENTILES).tolist())
