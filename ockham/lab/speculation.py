"""What drafting is worth on streams that are replayed: pairs of runs, one with it, one without."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.core.step import Floats, Ints, Longs, Step, StepOutput
from ockham.draft.draft_model import DraftModel
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.small_model import SmallModel
from ockham.engine.speculation import Speculation
from ockham.kernels.base import Executor, Run
from ockham.kernels.sampling import Draw, Drawn
from ockham.lab.reading import likeliest
from ockham.lab.replay import Replay
from ockham.lab.statistics import Interval, paired_ratio
from ockham.lab.streams import Stream
from ockham.model.loading import load_model, plan_model


@dataclass(frozen=True, slots=True)
class Worth:
    """What drafting did for the streams of one kind, `batch` of them at a time.

    `speed` is the time of decoding without it over the time with it. `tokens_per_step` are
    generated tokens for each sequence and step; `accepted` is the share of drafted tokens.
    `draft_s` are the mean seconds that drafting takes of a step, for each sequence.
    """

    kind: str
    batch: int
    pairs: int
    speed: float
    interval: Interval | None
    tokens_per_step: float
    drafted: int
    accepted: float
    accepted_at: list[float]
    """Of the drafts that were as deep, the share that was accepted at each depth."""
    draft_s: float
    decode_tokens: int


class Charged:
    """An executor that runs every step in another model too: it says what the one says, and takes
    the time of both. So a small draft model can be charged at the size that a real one has.

    The other's program is over state of the same pages."""

    def __init__(self, executor: Executor, other: Executor, operations: int) -> None:
        self._executor, self._other, self._operations = executor, other, operations

    def begin(self, step: Step) -> Run:
        return self._executor.begin(step)

    def run(self, run: Run, start: int, stop: int) -> None:
        self._executor.run(run, start, stop)

    def finish(self, run: Run) -> StepOutput:
        other = self._other.begin(run.step)
        self._other.run(other, 0, self._operations)
        self._other.finish(other)
        return self._executor.finish(run)

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        self._executor.reposition(group, source, target, shifts)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        return self._executor.sample(logits, draws)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int
    ) -> list[dict[int, tuple[float, int]]]:
        return self._executor.logprobs(logits, targets, top)


def charge(drafter: DraftModel, model: str) -> None:
    """From now on a draft model's steps take the time of `model`'s too."""
    small = cast(SmallModel, drafter.model)
    pages, page_tokens = small.state.groups[0].pages, small.state.page_tokens
    settings = {"model": model, "max_model_len": 1, "max_num_seqs": 1, "block_size": page_tokens}
    planned = plan_model(msgspec.convert(settings, EngineConfig))
    (layout,) = planned.plan.layouts(planned.description)
    settings |= {
        "max_model_len": small.longest,
        "max_num_batched_tokens": small.most_rows,
        "kv_cache_memory_bytes": pages * page_tokens * layout.cell_bytes,
    }
    loaded = load_model(msgspec.convert(settings, EngineConfig))
    planes = loaded.backend.allocate(loaded.layouts)
    other = loaded.backend.bind(loaded.program, planes)
    small.executor = Charged(small.executor, other, len(loaded.program.ops))


BLOCK = 8
"""Tokens after which the two take turns."""


@dataclass(slots=True)
class _Side:
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0


def measure(
    engine: Engine,
    own: Speculation,
    none: Speculation,
    kind: str,
    streams: Sequence[Stream],
    batch: int,
    reader: Engine | None = None,
) -> Worth:
    """Decode the streams, `batch` at a time, with drafts and without them by turns, a few tokens
    each, and once more with the turns exchanged: so that what the machine does meanwhile, and what
    the text is like, falls on both. The engine gets its own executor and controller back.

    The two times are two tenants, so that no drafter has learned a text when it comes again. Where
    a drafter learns from likely tokens, they are those of `reader`, which reads the streams."""
    executor, before = engine.executor, engine.speculation
    sides: tuple[list[float], list[float]] = ([], [])
    steps = tokens = 0
    read_s = 0.0
    counters = own.counters = type(own.counters)()
    try:
        for group in _groups(streams, batch):
            likely = {} if reader is None else _likely(reader, group, own.candidates)
            engine.executor = Replay(executor, {i: s.tokens for i, s in enumerate(group)}, likely)
            turns = (_Side(), _Side())
            for phase in (0, 1):
                _decode(engine, group, (none, own), turns, phase)
            # Each token was decoded once with drafts, and the prompt read twice.
            turns[1].seconds -= (counters.reading_s - read_s) / 2
            read_s = counters.reading_s
            for side, seconds in zip(turns, sides, strict=True):
                seconds.append(side.seconds / side.tokens)
            steps, tokens = steps + turns[1].steps * len(group), tokens + turns[1].tokens
    finally:
        engine.executor, engine.speculation = executor, before
    speed, interval = paired_ratio(*sides)
    reached = [counters.drafts, *counters.accepted_at]
    return Worth(
        kind=kind,
        batch=batch,
        pairs=len(sides[0]),
        speed=speed,
        interval=interval,
        tokens_per_step=tokens / steps,
        drafted=counters.tokens,
        accepted=counters.accepted / counters.tokens if counters.tokens else 0.0,
        accepted_at=[after / before if before else 0.0 for before, after in pairwise(reached)],
        draft_s=(counters.seconds - counters.reading_s) / max(1, counters.planned),
        decode_tokens=tokens,
    )


def _likely(reader: Engine, group: Sequence[Stream], count: int) -> dict[int, Ints]:
    if not count:
        return {}
    return {number: likeliest(reader, stream.tokens, count) for number, stream in enumerate(group)}


def _groups(streams: Sequence[Stream], batch: int) -> Iterator[Sequence[Stream]]:
    for start in range(0, len(streams) - batch + 1, batch):
        yield streams[start : start + batch]


def _decode(
    engine: Engine,
    group: Sequence[Stream],
    controllers: Sequence[Speculation],
    turns: Sequence[_Side],
    phase: int,
) -> None:
    """Compute the prompts, then time what comes after the last one's first token."""
    engine.reuse.forget()
    for number, stream in enumerate(group):
        params = SamplingParams(
            temperature=0.0, max_tokens=stream.answered, ignore_eos=True, seed=number
        )
        engine.add(
            Request(
                request_id=f"stream-{number}",
                prompt_token_ids=stream.tokens[: stream.prompt],
                params=params,
                detokenize=False,
                cache_salt=f"phase {phase}",
            )
        )
    waiting = {f"stream-{number}" for number in range(len(group))}
    engine.speculation = controllers[0]
    while waiting:
        waiting -= {delta.request_id for delta in engine.step() if delta.token_ids}
    generated = 0
    while engine.has_work:
        which = (generated // (BLOCK * len(group)) + phase) % 2
        engine.speculation, side = controllers[which], turns[which]
        started = time.perf_counter()
        deltas = engine.step()
        side.seconds += time.perf_counter() - started
        side.steps += 1
        tokens = sum(len(delta.token_ids) for delta in deltas)
        side.tokens += tokens
        generated += tokens
    for controller in controllers:
        controller.forget_all()
