"""The worker's side of the protocol, and what all workers share. Standard library only.

A worker is a process that holds one engine. It reads one JSON object a line on stdin and answers
each with one line:

    {"do": "load", "path": P, "precision": "int8", "threads": 2}
        {"version": "1.2"}
    {"do": "generate", "prompts": [[..]], "new_tokens": N}
        {"tokens": [[..]], "start": T, "first": T, "end": T}
    {"do": "mixed", "trace": [[arrival_s, prompt, new_tokens], ..]}
        {"served": [[tokens, first_s, end_s], ..]}
    {"do": "returning", "requests": [[prompt, new_tokens], ..], "at_once": N, "reuse": true}
        {"served": [[tokens, begun_s, first_s, end_s], ..]}
    {"do": "drafts", "prompt": [..], "new_tokens": N, "drafted": 16}
        {"tokens": [..], "start": T, "first": T, "end": T}
    {"do": "logits", "prompt": [..], "out": PATH}
        {}, and the file holds a NumPy array, float32 (tokens, vocabulary), the last row left out
        perhaps: the logits after each token

Prompts and tokens are ids, decoding is greedy, no token ends a sequence. S are seconds from the
start of the call, T are moments on the clock of `time.perf_counter`, which all processes of a
machine share, so that the controller can take away the time in which it had stopped the worker. An
error is answered with {"error": text}; the worker goes on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Protocol, runtime_checkable

POOL_TOKENS = 16384
"""Tokens for which an engine that asks for it beforehand reserves state."""
MAX_SEQUENCES = 16
"""Sequences that an engine with continuous batching may run at once."""
SETTLE_S = 2.0
"""For what an engine does in the background after it was loaded anew between two calls."""


@dataclass(frozen=True)
class Generated:
    """What a static batch gave, and when: `first`, the moment when every sequence had its first
    token. Moments are `time.perf_counter`'s."""

    tokens: list[list[int]]
    start: float
    first: float
    end: float


@dataclass(frozen=True)
class Arrival:
    """A request of mixed traffic, `arrival_s` after the start."""

    arrival_s: float
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Served:
    """What became of an arrival: tokens generated, and when, in seconds from the start. `begun_s`:
    when the engine was given it."""

    tokens: int
    begun_s: float
    first_s: float
    end_s: float


WARMUP = Arrival(0.0, list(range(100, 132)), 32)
"""What it then does first."""


class Engine(Protocol):
    """An engine with a model loaded."""

    version: str

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generated:
        """Continue prompts of equal length, all at once, each by `new_tokens` tokens."""

    def mixed(self, trace: list[Arrival]) -> list[Served]:
        """Serve requests as they arrive, the engine's best way; they come in order of arrival."""


@runtime_checkable
class Reusing(Engine, Protocol):
    """An engine that can go on from what it computed for an earlier request."""

    def returning(self, trace: list[Arrival], at_once: int, reuse: bool) -> list[Served]:
        """Serve requests that are all there at the start, in their order, the next one as soon as
        fewer than `at_once` run. `reuse`: whether what was computed for one may serve another."""


@runtime_checkable
class Drafting(Engine, Protocol):
    """An engine that drafts tokens without a second model."""

    def drafting(self, prompt: list[int], new_tokens: int, drafted: int) -> Generated:
        """Continue a prompt with up to `drafted` drafted tokens in each step; 0: without drafts."""


@runtime_checkable
class Scoring(Engine, Protocol):
    """An engine that shows its logits."""

    def write_logits(self, prompt: list[int], out: str) -> None:
        """Write the logits after each token of a prompt: see the request `logits`."""


Load = Callable[[str, str, int], Engine]
"""Path, precision and threads -> engine."""


def one_after_another(engine: Engine, trace: list[Arrival]) -> list[Served]:
    """Mixed traffic on an engine that cannot take a request while others run."""
    start = time.perf_counter()
    served = []
    for arrival in trace:
        wait_until(start, arrival.arrival_s)
        run = engine.generate([arrival.prompt], arrival.new_tokens)
        end_s = time.perf_counter() - start
        served.append(Served(len(run.tokens[0]), run.start - start, run.first - start, end_s))
    return served


def wait_until(start: float, moment_s: float) -> float:
    """Sleep until `moment_s` after `start`; returns the seconds since `start`."""
    while (now_s := time.perf_counter() - start) < moment_s:
        time.sleep(moment_s - now_s)
    return now_s


def serve(load: Load) -> None:
    """Answer requests until stdin ends."""
    serve_answers(load, _answer)


def serve_answers(
    load: Callable[[str, str, int], Any], answer_with: Callable[[Any, dict[str, Any]], Any]
) -> None:
    """The same for what any kind of engine answers, given by a function of it and the request."""
    _die_with_parent()
    # What engines print on stdout must not come between the answers: it goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                engine = load(request["path"], request["precision"], request["threads"])
                answer: dict[str, Any] = {"version": engine.version}
            elif engine is None:
                raise ValueError("the first request must be load.")
            else:
                answer = answer_with(engine, request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "generate":
        run = engine.generate(request["prompts"], request["new_tokens"])
        moments = {"start": run.start, "first": run.first, "end": run.end}
        return {"tokens": run.tokens, **moments}
    if request["do"] == "mixed":
        served = engine.mixed([Arrival(*fields) for fields in request["trace"]])
        return {"served": [[each.tokens, each.first_s, each.end_s] for each in served]}
    if request["do"] == "returning":
        if not isinstance(engine, Reusing):
            raise ValueError("the engine keeps nothing from one request to the next.")
        trace = [Arrival(0.0, *fields) for fields in request["requests"]]
        served = engine.returning(trace, request["at_once"], request["reuse"])
        return {"served": [astuple(each) for each in served]}
    if request["do"] == "drafts":
        if not isinstance(engine, Drafting):
            raise ValueError("the engine drafts nothing.")
        run = engine.drafting(request["prompt"], request["new_tokens"], request["drafted"])
        moments = {"start": run.start, "first": run.first, "end": run.end}
        return {"tokens": run.tokens[0], **moments}
    if request["do"] == "logits":
        if not isinstance(engine, Scoring):
            raise ValueError("the engine does not show its logits.")
        engine.write_logits(request["prompt"], request["out"])
        return {}
    raise ValueError(f"there is no request {request['do']!r}.")


def _die_with_parent() -> None:
    """A worker that is stopped (SIGSTOP) would not see that its stdin was closed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
