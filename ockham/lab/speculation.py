"""What drafting is worth on streams that are replayed: several ways of it, and none, by turns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.sampling_params import SamplingParams
from ockham.core.speculative import DraftStats
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.sequence import Sequence as Running
from ockham.engine.speculation import Speculation
from ockham.lab.drafting import candidates_of
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
    """The same streams as one controller has them said. It goes on where it was when it has its
    turn again, so that it meets the text as if it were alone."""

    def __init__(
        self, engine: Engine, method: str, controller: Speculation, group: Sequence[Stream]
    ) -> None:
        self.controller = controller
        self._engine = engine
        self._method = method
        self._group = group
        self._running: list[Running] = []
        self._said = [0] * len(group)
        places = (len(group), max(stream.answered for stream in group))
        self.seconds, self.steps = np.zeros(places), np.zeros(places)
        """By the place of a token: its part of its step. 0 where that does not count, because not
        all of the streams ran any longer."""

    @property
    def said(self) -> int:
        """Tokens so far."""
        return sum(self._said)

    @property
    def done(self) -> bool:
        return not self._running

    def read_prompts(self, salt: str) -> None:
        """Compute the prompts, up to the last one's first token."""
        engine = self._engine
        engine.scheduler.running = self._running
        for number, stream in enumerate(self._group):
            params = SamplingParams(
                temperature=0.0, max_tokens=stream.answered, ignore_eos=True, seed=number
            )
            engine.add(
                Request(
                    request_id=f"{number} {self._method}",
                    prompt_token_ids=stream.tokens[: stream.prompt],
                    params=params,
                    detokenize=False,
                    cache_salt=salt,
                )
            )
        while not all(self._said):
            self._advance(engine.step())

    def go_on(self) -> None:
        """Have a turn."""
        engine, until = self._engine, self.said + BLOCK * len(self._running)
        engine.scheduler.running, engine.speculation = self._running, self.controller
        while self._running and self.said < until:
            full = len(self._running) == len(self._group)
            started = time.perf_counter()
            deltas = engine.step()
            seconds = time.perf_counter() - started
            new = self._advance(deltas)
            tokens = sum(places.stop - places.start for places in new.values())
            for stream, places in new.items() if full else ():
                self.seconds[stream, places] = seconds / tokens
                self.steps[stream, places] = 1 / (places.stop - places.start)

    def _advance(self, deltas: Sequence[Delta]) -> dict[int, slice]:
        """What a step added to what each stream has said."""
        counts: Counter[int] = Counter()
        for delta in deltas:
            counts[int(delta.request_id.split()[0])] += len(delta.token_ids)
        new = {}
        for stream, tokens in counts.items():
            new[stream] = slice(self._said[stream], self._said[stream] + tokens)
            self._said[stream] += tokens
        return {stream: places for stream, places in new.items() if places.stop > places.start}


@dataclass(slots=True)
class _Sums:
    """Of all groups so far."""

    speeds: list[float]
    steps: float = 0.0
    tokens: int = 0

    def add(self, own: _Side, none: _Side) -> None:
        both = (own.seconds > 0) & (none.seconds > 0)
        self.speeds.append(float(none.seconds[both].sum() / own.seconds[both].sum()))
        self.steps += float(own.steps[both].sum())
        self.tokens += int(both.sum())


def measure(
    engine: Engine,
    ways: Mapping[str, Speculation],
    none: Speculation,
    kind: str,
    streams: Sequence[Stream],
    batch: int,
    reader: Engine | None = None,
) -> list[Worth]:
    """Decode the streams, `batch` at a time, in each way and without drafts. All of them are under
    way at the same time and have turns, so that all are at about the same place of a text and
    what the machine does meanwhile falls on all. The engine needs room for so many sequences, and
    gets its own executor and controller back.

    Where a drafter learns from one text for another, the ways are different tenants, so that none
    has learned a text before. Where one learns from likely tokens, they are those of `reader`,
    which reads the streams."""
    executor, before = engine.executor, engine.speculation
    sums = {method: _Sums([]) for method in ways}
    for own in ways.values():
        own.counters = DraftStats()
    candidates = most_candidates(ways.values())
    learning = any(own.learns for own in ways.values())
    try:
        for number, group in enumerate(_groups(streams, batch)):
            likely = {} if reader is None else _likely(reader, group, candidates)
            engine.executor = Replay(executor, {i: s.tokens for i, s in enumerate(group)}, likely)
            engine.reuse.forget()
            sides = [
                _Side(engine, method, each, group)
                for method, each in [("none", none), *ways.items()]
            ]
            # Who comes after whom changes: steps of the one may leave caches cold for the other.
            order = sides if number % 2 == 0 else sides[::-1]
            _decode(engine, order, none, learning)
            for side, sum_ in zip(sides[1:], sums.values(), strict=True):
                sum_.add(side, sides[0])
    finally:
        engine.executor, engine.speculation = executor, before
    return [_worth(m, kind, batch, sums[m], own.counters) for m, own in ways.items()]


def most_candidates(ways: Iterable[Speculation]) -> int:
    """How many of the likeliest tokens after each row some drafter wants to know."""
    return max([candidates_of(each) for own in ways for each in own.drafters], default=0)


def _decode(engine: Engine, sides: Sequence[_Side], none: Speculation, learning: bool) -> None:
    """Compute the prompts, then time what comes after the last one's first token."""
    engine.speculation = none
    for number, side in enumerate(sides):
        side.read_prompts(f"side {number}" if learning else "")
    while going := [side for side in sides if not side.done]:
        min(going, key=lambda side: side.said).go_on()
    for side in sides:
        side.controller.forget_all()


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
