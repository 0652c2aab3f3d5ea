"""A technique judged by questions that come one after the other: what it costs on the first
question about a context, and on those that are answered from what the first one left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import msgspec

from ockham.core.asks import Ask
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.engine.engine import Engine
from ockham.lab.interview import Talk, converse, interview_of
from ockham.lab.statistics import Interval, paired_difference
from ockham.lab.tasks.shared import SHARED, Shared, shared

CONTEXTS = 8
BUDGET_S = 180.0


class Change(msgspec.Struct, kw_only=True):
    """Shares of right answers without and with a technique, and the 95% interval of the
    difference, by contexts."""

    without: float
    with_: float
    interval: Interval | None


class Judged(msgspec.Struct, kw_only=True):
    """What a technique changed on one task, asked in one way (see `lab.tasks.shared`)."""

    task: str
    way: str
    tokens: int
    contexts: int
    first: Change
    """Question 1."""
    later: Change
    """Questions 2 to 5."""

    def __str__(self) -> str:
        def said(change: Change) -> str:
            low, high = change.interval or (math.nan, math.nan)
            return (
                f"{change.without:.0%} -> {change.with_:.0%} [{100 * low:+.0f}, {100 * high:+.0f}]"
            )

        return (
            f"{self.task}, {self.way}, {self.tokens} tokens, {self.contexts} contexts: question 1 "
            f"{said(self.first)}; questions 2 to 5 {said(self.later)}"
        )


def judge(
    engine: Engine,
    asks: Mapping[str, Ask],
    *,
    tasks: Sequence[str] = tuple(SHARED),
    ways: Sequence[str] = ("turns", "requests"),
    tokens: Sequence[int] = (1000,),
    contexts: int = CONTEXTS,
    seed: int = 0,
    budget_s: float = BUDGET_S,
    other: Engine | None = None,
) -> list[Judged]:
    """Compare requests with `asks` (of `core.registry.make_asks`) with those that ask for nothing,
    on the same contexts, one after the other; of `other`, if a technique is a setting of its
    engine.

    Of each task, way and number of tokens as many contexts are judged, at most `contexts`: no more
    are begun when `budget_s` seconds are over, but one of each is. What does not fit into the
    model's context is left out; so is a technique whose state is private judged by the way "after"
    too, which has the first question in what it sees. Raises ConfigError where nothing fits.
    """
    if engine.tokenizer is None:
        raise ConfigError("questions are asked in this measurement, and there is no tokenizer.")
    kinds = [(task, way, size) for size in tokens for task in tasks for way in ways]
    pairs: dict[tuple[str, str, int], list[tuple[list[float], list[float]]]] = {}
    until = time.monotonic() + budget_s
    for number in range(contexts):
        if number and time.monotonic() > until:
            break
        for kind in kinds:
            pair = _asked(engine, other or engine, asks, kind, seed, number)
            if pair is not None:
                pairs.setdefault(kind, []).append(pair)
    if not pairs:
        raise ConfigError(
            f"a context of {engine.max_model_len} tokens has room for none of these tasks."
        )
    return [
        Judged(
            task=task,
            way=way,
            tokens=size,
            contexts=len(found),
            first=_change([(before[:1], after[:1]) for before, after in found]),
            later=_change([(before[1:], after[1:]) for before, after in found]),
        )
        for (task, way, size), found in pairs.items()
    ]


def _asked(
    engine: Engine,
    other: Engine,
    asks: Mapping[str, Ask],
    kind: tuple[str, str, int],
    seed: int,
    number: int,
) -> tuple[list[float], list[float]] | None:
    """The scores of one context's questions, without and with; None if they do not fit."""
    tokenizer, (task, way, size) = engine.tokenizer, kind
    assert tokenizer is not None, "it was looked for"
    drawn = shared(task, seed, number, size, lambda text: len(tokenizer.encode(text)))
    interview = interview_of(tokenizer, drawn, way)
    if interview.longest > min(engine.max_model_len, other.max_model_len):
        return None
    scores: list[list[float]] = []

    def done(name: str, talk: Talk, output: RequestOutput) -> None:
        texts = [tokenizer.decode(answer, True) for answer in talk.answers]
        scores.append(_scores(drawn, texts))

    converse(engine, {"without": interview}, done)
    converse(other, {"with": interview}, done, asks)
    before, after = scores
    return before, after


def _scores(drawn: Shared, texts: Sequence[str]) -> list[float]:
    return [each.score(text) for each, text in zip(drawn.questions, texts, strict=True)]


def _change(pairs: Sequence[tuple[list[float], list[float]]]) -> Change:
    """Of the shares that each context's questions have on average."""
    before, after = (
        [math.fsum(scores) / len(scores) for scores in side] for side in zip(*pairs, strict=True)
    )
    return Change(
        without=math.fsum(before) / len(before),
        with_=math.fsum(after) / len(after),
        interval=paired_difference(before, after),
    )
