"""The worker's side: one JSON object a line on stdin, one on stdout for each.

    {"do": "load", "path": P, "precision": "int8", "threads": 2}
        {"version": "1.2"}
    {"do": "prepare", "settings": {..}}
        {}: the engine is set, and has read a short prompt
    {"do": "read", "prompt": [..], "new_tokens": N}
        {"tokens": [..], "start": [T, P], "moments": [[T, P], ..], "told": {..}}

Decoding is greedy, and no token ends it. `moments` are those at which the caller has each new
token: on the clock of `time.perf_counter`, and the processor's seconds that the process has used.
`told` is what the engine says of what it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from benchmarks.peers.workers.serve import SETTLE_S, serve_answers

WARMUP_TOKENS = 640
"""More than one step reads."""
WARMUP = [100 + place % 900 for place in range(WARMUP_TOKENS)]
WARMUP_NEW_TOKENS = 8


Moment = tuple[float, float]


def now() -> Moment:
    """The clock, and what the process has used of the processor: seconds."""
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Read:
    """What came of a prompt."""

    tokens: list[int]
    start: Moment
    moments: list[Moment]
    told: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """An engine with a model loaded."""

    version: str

    def prepare(self, settings: dict[str, Any]) -> bool:
        """What it is to do with the next prompts; whether it was loaded anew for that."""

    def read(self, prompt: list[int], new_tokens: int) -> Read:
        """Continue a prompt of which nothing is known."""


def serve(load: Callable[[str, str, int], Engine]) -> None:
    """Answer requests until stdin ends."""
    serve_answers(load, _answer)


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "prepare":
        anew = engine.prepare(request["settings"])
        engine.read(WARMUP, WARMUP_NEW_TOKENS)
        if anew:
            time.sleep(SETTLE_S)
        return {}
    if request["do"] == "read":
        return asdict(engine.read(request["prompt"], request["new_tokens"]))
    raise ValueError(f"there is no request {request['do']!r}.")
