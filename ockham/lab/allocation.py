"""How many samples a problem should get: the table that `allocate` reads, learned from a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import mean

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.registry import make_asks
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.lab.running import drive
from ockham.search.structures.answers import Reader, check_extract

ORDERS = 32
"""In so many orders are the samples of an item learned from."""
HELD_OUT = 2
"""One item in so many judges; the others are learned from."""


class Sample(msgspec.Struct, frozen=True):
    """One sample of an item: its answer, its tokens, and whether it is right."""

    answer: str | None
    tokens: int
    right: float


class Way(msgspec.Struct, frozen=True):
    """What a way to spend samples comes to, on average over items: samples, tokens, and the share
    of right answers."""

    samples: float
    tokens: float
    right: float


class Allocation(msgspec.Struct, kw_only=True):
    """A table for `allocate`, and what it is worth on items that it was not learned from, beside
    one sample and all samples. `groups` has how many of the items that were learned from each of
    its entries was made of, on average over the orders of their samples."""

    table: list[int]
    groups: list[float]
    one: Way
    every: Way
    allocated: Way


def learn(
    config: EngineConfig,
    task: str,
    *,
    extract: str,
    items: int,
    samples: int,
    first: int,
    loss: float,
    temperature: float,
    seed: int,
    adapter: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Allocation:
    """Draw `samples` answers to each item of a task and learn how many are enough where k of the
    `first` agree: the fewest whose majority is right as often as that of all, but for `loss`.

    Raises ConfigError for a task that does not exist or has no answers, and for a model without a
    tokenizer.
    """
    if not 2 <= first <= samples:
        raise ConfigError(f"first must lie in [2, {samples}], the samples, got {first}.")
    if (said := check_extract(extract)) is not None:
        raise ConfigError(said)
    engine = Engine(config)
    try:
        if engine.tokenizer is None:
            raise ConfigError("answers are read from text: a table needs a model with a tokenizer.")
        cases = task_cases([task], items, seed, (), engine.tokenizer, engine.max_model_len).cases
        if not any(case.score for case in cases):
            raise ConfigError(f"the items of {task!r} have no right answers; name another task.")
        drawn = _drawn(engine, cases, extract, samples, temperature, seed, adapter, tell)
    finally:
        engine.close()
    Random(seed).shuffle(drawn)  # items come in turn from their levels
    learned = [each for n, each in enumerate(drawn) if n % HELD_OUT]
    judged = [each for n, each in enumerate(drawn) if n % HELD_OUT == 0]
    groups = _groups(learned, first, Random(seed))
    table = [_enough(group, first, samples, loss) for group in groups]
    return Allocation(
        table=table,
        groups=[len(group) / ORDERS for group in groups],
        one=way(judged, lambda each: 1),
        every=way(judged, lambda each: samples),
        allocated=way(judged, lambda each: table[max(0, agreed(each, first) - 1)]),
    )


def _groups(items: Sequence[Sequence[Sample]], first: int, rng: Random) -> list[list[list[Sample]]]:
    """The items by how many of their first samples agree; none counts as one. Any order of an
    item's samples is as good as another, so each counts in several."""
    groups: list[list[list[Sample]]] = [[] for _ in range(first)]
    for item in items:
        for _ in range(ORDERS):
            drawn = rng.sample(item, len(item))
            groups[max(0, agreed(drawn, first) - 1)].append(drawn)
    return groups


def agreed(drawn: Sequence[Sample], first: int) -> int:
    """How many of the first samples give the most frequent of their answers."""
    answers = Counter(each.answer for each in drawn[:first] if each.answer is not None)
    return max(answers.values(), default=0)


def majority(drawn: Sequence[Sample], count: int) -> float:
    """Whether the answer that most of the first `count` samples give is right; of two as frequent
    the earlier counts."""
    answers = Counter(each.answer for each in drawn[:count] if each.answer is not None)
    if not answers:
        return drawn[0].right
    (leader, _), *_ = answers.most_common(1)
    return next(each.right for each in drawn if each.answer == leader)


def way(items: Sequence[Sequence[Sample]], count: Callable[[Sequence[Sample]], int]) -> Way:
    """What the items come to, of each of which so many samples are drawn."""
    counts = [count(each) for each in items]
    return Way(
        samples=mean(counts),
        tokens=mean(
            sum(s.tokens for s in drawn[:n]) for drawn, n in zip(items, counts, strict=True)
        ),
        right=mean(majority(drawn, n) for drawn, n in zip(items, counts, strict=True)),
    )


def _enough(group: Sequence[Sequence[Sample]], first: int, samples: int, loss: float) -> int:
    """The fewest samples from which on the majority is as good as that of all, for items of one
    kind; all, if there are none."""
    if not group:
        return samples
    goal = mean(majority(drawn, samples) for drawn in group) - loss
    enough = samples
    while enough > first and mean(majority(drawn, enough - 1) for drawn in group) >= goal:
        enough -= 1
    return enough


def _drawn(
    engine: Engine,
    cases: Sequence[Case],
    extract: str,
    samples: int,
    temperature: float,
    seed: int,
    adapter: Mapping[str, str] | None,
    tell: Callable[[str], None],
) -> list[list[Sample]]:
    """The samples of each item, as `n` choices of one request."""
    read = Reader(extract)
    asks = make_asks({"adapter/lora": dict(adapter)}) if adapter else {}
    found: dict[str, list[Sample]] = {}
    by_key = {case.key: case for case in cases}

    def ended(output: RequestOutput) -> None:
        case = by_key[output.request_id]
        assert case.score is not None, "the cases of a task with answers"
        found[case.key] = [
            Sample(
                read(choice.text),
                len(choice.token_ids),
                case.score(choice.text),
            )
            for choice in output.outputs
        ]
        if len(found) % 20 == 0:
            tell(f"{len(found)} of {len(cases)} items are answered")

    wanted = (
        Request(
            request_id=case.key,
            prompt_token_ids=list(case.tokens),
            params=SamplingParams(
                n=samples, temperature=temperature, seed=seed + place, max_tokens=case.max_tokens
            ),
            asks=dict(asks),
        )
        for place, case in enumerate(cases)
    )
    drive(engine, wanted, ended)
    return [found[case.key] for case in cases]
