"""What drafting is worth on streams that are replayed: several ways of it, and none, by turns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ockham.core.sampling_params import SamplingParams
from ockham.core.speculative import DraftStats
from ockham.core.step import Ints
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.speculation import Speculation
from ockham.lab.reading import likeliest
from ockham.lab.replay import Replay
from ockham.lab.statistics import Interval, paired_ratio
from ockham.lab.streams import Stream


@dataclass(frozen=True, slots=True)
class Worth:
    """What one way of drafting did for the streams of one kind, `batch` of them at a time.

    `speed` is the time of decoding without drafts over the time with them, of the same tokens, and
    `speeds` are those of each group of streams. `tokens_per_step` are generated tokens for each
    sequence and step; `accepted` is the share of drafted tokens. `draft_s` are the mean seconds
    that drafting takes of a step, for each sequence.
    """

    method: str
    kind: str
    batch: int
    speed: float
    interval: Interval | None
    speeds: list[float]
    tokens_per_step: float
    drafted: int
    accepted: float
    accepted_at: list[float]
    """Of the drafts that were as deep, the share that was accepted at each depth."""
    draft_s: float


BLOCK = 8
"""Tokens of a sequence after which the next one has its turn."""


class _Side:
    """What one controller's steps cost, by the place of the tokens that they gave."""

    def __init__(self, controller: Speculation, streams: int, tokens: int) -> None:
        self.controller = controller
        self.reading_s = 0.0
        """Of drafting, what went into reading texts."""
        self._seconds = np.zeros((streams, tokens))
        self._steps = np.zeros((streams, tokens))
        self._visits = np.zeros((streams, tokens), np.int64)

    def add(self, seconds: float, said: Mapping[int, slice]) -> None:
        """A step gave these tokens: of each stream, from where to where."""
        tokens = sum(places.stop - places.start for places in said.values())
        for stream, places in said.items():
            self._seconds[stream, places] += seconds / tokens
            self._steps[stream, places] += 1 / (places.stop - places.start)
            self._visits[stream, places] += 1

    def beside(self, other: _Side) -> tuple[float, float, float, int]:
        """Seconds, the other's seconds, and steps, of the tokens that both have said, and how many
        tokens these are. A token that was said more than once has the mean of its costs."""
        both = (self._visits > 0) & (other._visits > 0)
        mine, others = self._visits[both], other._visits[both]
        return (
            float((self._seconds[both] / mine).sum()),
            float((other._seconds[both] / others).sum()),
            float((self._steps[both] / mine).sum()),
            int(both.sum()),
        )


@dataclass(slots=True)
class _Sums:
    """Of all groups so far."""

    speeds: list[float]
    steps: float = 0.0
    tokens: int = 0


def measure(
    engine: Engine,
    ways: Mapping[str, Speculation],
    none: Speculation,
    kind: str,
    streams: Sequence[Stream],
    batch: int,
    reader: Engine | None = None,
) -> list[Worth]:
    """Decode the streams, `batch` at a time, in each way and without drafts by turns, a few tokens
    each, and again until each has begun at every place: so that what the machine does meanwhile,
    and what the text is like, falls on all. The engine gets its own executor and controller back.

    A draft may go on into the turn of the next one. Therefore times are compared token by token,
    at the places that both have said: text that is easily drafted counts no more than other text.
    Where a drafter learns from one text for another, the times are different tenants, so that none
    has learned a text when it comes again. Where one learns from likely tokens, they are those of
    `reader`, which reads the streams."""
    executor, before = engine.executor, engine.speculation
    controllers = [none, *ways.values()]
    sums = {method: _Sums([]) for method in ways}
    for own in ways.values():
        own.counters = DraftStats()
    candidates = max(own.candidates for own in controllers)
    learning = any(own.learns for own in controllers)
    try:
        for number, group in enumerate(_groups(streams, batch)):
            likely = {} if reader is None else _likely(reader, group, candidates)
            engine.executor = Replay(executor, {i: s.tokens for i, s in enumerate(group)}, likely)
            engine.reuse.forget()
            longest = max(stream.answered for stream in group)
            sides = [_Side(each, len(group), longest) for each in controllers]
            # Nobody always comes after the same one, whose steps may have left caches cold.
            order = sides if number % 2 == 0 else sides[::-1]
            for phase in range(len(sides)):
                _decode(engine, group, order, phase, f"time {phase}" if learning else "")
            for side, sum_ in zip(sides[1:], sums.values(), strict=True):
                own_s, none_s, steps, tokens = side.beside(sides[0])
                # Prompts were read each time that the tokens, each in one of the times, were said.
                own_s += side.reading_s / len(sides)
                sum_.speeds.append(none_s / own_s)
                sum_.steps, sum_.tokens = sum_.steps + steps, sum_.tokens + tokens
    finally:
        engine.executor, engine.speculation = executor, before
    return [_worth(m, kind, batch, sums[m], own.counters) for m, own in ways.items()]


def _worth(method: str, kind: str, batch: int, sums: _Sums, counters: DraftStats) -> Worth:
    speed, interval = paired_ratio(sums.speeds, [1.0] * len(sums.speeds))
    reached = [counters.drafts, *counters.accepted_at]
    return Worth(
        method=method,
        kind=kind,
        batch=batch,
        speed=speed,
        interval=interval,
        speeds=sums.speeds,
        tokens_per_step=sums.tokens / sums.steps,
        drafted=counters.tokens,
        accepted=counters.accepted / counters.tokens if counters.tokens else 0.0,
        accepted_at=[after / before if before else 0.0 for before, after in pairwise(reached)],
        draft_s=(counters.seconds - counters.reading_s) / max(1, counters.planned),
    )


def _likely(reader: Engine, group: Sequence[Stream], count: int) -> dict[int, Ints]:
    if not count:
        return {}
    return {number: likeliest(reader, stream.tokens, count) for number, stream in enumerate(group)}


def _groups(streams: Sequence[Stream], batch: int) -> Iterator[Sequence[Stream]]:
    for start in range(0, len(streams) - batch + 1, batch):
        yield streams[start : start + batch]


def _decode(
    engine: Engine, group: Sequence[Stream], sides: Sequence[_Side], phase: int, salt: str
) -> None:
    """Compute the prompts, then time what comes after the last one's first token."""
    for number, stream in enumerate(group):
        params = SamplingParams(
            temperature=0.0, max_tokens=stream.answered, ignore_eos=True, seed=number
        )
        engine.add(
            Request(
                request_id=str(number),
                prompt_token_ids=stream.tokens[: stream.prompt],
                params=params,
                detokenize=False,
                cache_salt=salt,
            )
        )
    said = [0] * len(group)
    engine.speculation = next(s.controller for s in sides if not s.controller)
    while not all(said):
        _advance(said, engine.step())
    begun = sum(said)
    while engine.has_work:
        turn = (sum(said) - begun) // (BLOCK * len(group)) + phase
        side = sides[turn % len(sides)]
        engine.speculation = side.controller
        reading_before_s = side.controller.counters.reading_s
        started = time.perf_counter()
        deltas = engine.step()
        seconds = time.perf_counter() - started
        reading_s = side.controller.counters.reading_s - reading_before_s
        side.reading_s += reading_s
        side.add(seconds - reading_s, _advance(said, deltas))
    for side in sides:
        side.controller.forget_all()


def _advance(said: list[int], deltas: Sequence[Delta]) -> dict[int, slice]:
    """What a step added to what each stream has said."""
    counts: Counter[int] = Counter()
    for delta in deltas:
        counts[int(delta.request_id)] += len(delta.token_ids)
    places = {}
    for stream, tokens in counts.items():
        if tokens:
            places[stream] = slice(said[stream], said[stream] + tokens)
            said[stream] += tokens
    return places
