"""What the quality guard's tests do: on simulated texts, and on a model whose traffic changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Longs
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.guarded import Guarded
from ockham.core.sampling_params import SamplingParams
from ockham.core.sequential import LIMIT, MOST, STAKES, bet_on_loss
from ockham.engine.engine import Engine
from ockham.engine.guarding import Guard
from ockham.engine.messages import Request
from ockham.lab.tasks import items

_GOOD_POSITIONS = 10_000
"""Of a simulated service before its technique goes bad."""
_BAD_POSITIONS = 16_000
"""And after that, at most."""
FOUND_WITHIN = 500
"""Positions: the goal for a loss of five points."""


class Case(msgspec.Struct, frozen=True):
    """A mean agreement before and after a technique goes bad, and a floor. With a `spread` each
    text has an agreement of its own, whose variance is that share of the most that it could be."""

    floor: float
    good: float
    bad: float
    spread: float = 0.0


CASES = (
    Case(0.97, 0.97, 0.92),
    Case(0.97, 0.99, 0.92),
    Case(0.97, 0.99, 0.94),
    Case(0.97, 0.99, 0.92, 0.1),
    Case(0.99, 0.99, 0.94),
    Case(0.95, 0.95, 0.90),
    Case(0.90, 0.90, 0.85),
)


class Trial(msgspec.Struct, kw_only=True):
    """What many simulated services of one case gave. The false alarms are of `_GOOD_POSITIONS`
    positions at the floor itself (`claimed` is the most that the theory allows), and of as many at
    the case's good agreement. The delays are in scored positions, from when the technique goes bad;
    `expected` is what the theory says of them for the best stake: ln(limit) over what a text adds
    to the logarithm of the capital."""

    case: Case
    services: int
    false_alarms_at_floor: float
    claimed: float
    false_alarms_good: float
    delay_mean: float
    delay_p90: float
    found: float
    """The share of delays of at most `FOUND_WITHIN`."""
    expected: float


def trial(case: Case, services: int, seed: int) -> Trial:
    """Simulate services whose technique goes bad after a time."""
    rng = np.random.default_rng(seed)
    good, bad = _GOOD_POSITIONS // MOST, _BAD_POSITIONS // MOST
    bound = 1.0 - case.floor
    at_floor = _alarms(_losses(rng, case.floor, case.spread, services, good), bound)
    before = _losses(rng, case.good, case.spread, services, good)
    after = _losses(rng, case.bad, case.spread, services, bad)
    found = _alarms(np.concatenate([before, after], axis=1), bound)
    early = (found > 0) & (found <= good)
    late = found[~early]
    delays = MOST * np.where(late == 0, bad, late - good)
    values = (after.ravel()[:200_000] - MOST * bound) / (MOST * bound)
    growth = max(float(np.log1p(stake * values).mean()) for stake in STAKES)
    return Trial(
        case=case,
        services=services,
        false_alarms_at_floor=float(np.mean(at_floor > 0)),
        claimed=good / LIMIT,
        false_alarms_good=float(np.mean(early)),
        delay_mean=float(delays.mean()),
        delay_p90=float(np.percentile(delays, 90)),
        found=float(np.mean(delays <= FOUND_WITHIN)),
        expected=MOST * math.log(LIMIT) / growth if growth > 0 else math.inf,
    )


def _losses(
    rng: np.random.Generator, agreement: float, spread: float, services: int, texts: int
) -> Doubles:
    """Of each text of each service how many of its positions disagree: (services, texts)."""
    rate = np.full((services, texts), 1.0 - agreement)
    if spread:
        total = 1.0 / spread - 1.0
        rate = rng.beta((1.0 - agreement) * total, agreement * total, (services, texts))
    found: Doubles = rng.binomial(MOST, rate).astype(np.float64)
    return found


def _alarms(losses: Doubles, bound: float) -> Longs:
    """Of each service the text of its first alarm, counted from 1; 0 for none."""
    services, texts = losses.shape
    positions = np.full(services, float(MOST))
    capitals = np.zeros((services, len(STAKES)))
    found = np.zeros(services, np.int64)
    for text in range(texts):
        capitals = bet_on_loss(capitals, losses[:, text], positions, bound)
        found[(found == 0) & (capitals.sum(axis=1) >= LIMIT)] = text + 1
    return found


class Phase(msgspec.Struct, kw_only=True):
    """What a guard found of one kind of traffic."""

    prompt_tokens: int
    """Of the longest prompt."""
    requests: int
    texts: int
    positions: int
    agreement: float | None
    kl: float | None


class Service(msgspec.Struct, kw_only=True):
    """A service whose traffic changes: what was found of each kind, and what it cost. `switched` is
    how many positions of the second kind had been scored when the technique was switched off; None
    if it was not. `longest_step_rows` is of the guard's steps."""

    model: str
    technique: str
    floor: str
    phases: list[Phase]
    switched: int | None
    left_out: int
    share: float
    rows: int
    traffic_rows: int
    longest_step_rows: int


TRAFFIC = ("tokens=128", "tokens=512")
"""Lists of keys and words, of which one is asked for. A technique that forgets what stands far back
loses nothing in the short ones."""


def serve(config: EngineConfig, requests: int, seed: int) -> Service:
    """Serve so many requests of each kind of traffic, one after the other, with all of their texts
    scored in between as far as the guard's share allows."""
    engine = Engine(config)
    guard = Guard(engine)
    phases: list[Phase] = []
    before = Guarded(techniques=(), settings="", workload="")
    switched: int | None = None
    longest = 0
    for number, level in enumerate(TRAFFIC):
        longest_prompt = 0
        for request in _requests(engine, level, requests, seed, number):
            longest_prompt = max(longest_prompt, len(request.prompt_token_ids))
            engine.take(guard.admit(request))
            while engine.has_work:
                guard.after(engine.step())
            while engine.has_work or guard.wake():
                rows = engine.total.rows
                guard.after(engine.step())
                longest = max(longest, engine.total.rows - rows)
            uses = guard.stats().uses
            if switched is None and number and uses and uses[0].state == "off":
                switched = uses[0].positions - before.positions
        uses = guard.stats().uses
        now = uses[0] if uses else before
        phases.append(_phase(before, now, longest_prompt))
        before = now
    found = guard.stats()
    engine.close()
    return Service(
        model=config.model,
        technique=" with ".join(before.techniques),
        floor=found.floor,
        phases=phases,
        switched=switched,
        left_out=before.left_out,
        share=found.share,
        rows=found.rows,
        traffic_rows=found.traffic_rows,
        longest_step_rows=longest,
    )


def _requests(engine: Engine, level: str, count: int, seed: int, number: int) -> Iterator[Request]:
    tokenizer = engine.tokenizer
    if tokenizer is None or not tokenizer.has_chat_template:
        raise ConfigError("the model is asked in chats, and has no chat template; name another.")
    for index, item in enumerate(items("recall", seed, count, level=level)):
        text = tokenizer.apply_chat_template(list(item.messages))
        yield Request(
            request_id=f"{number}.{index}",
            prompt_token_ids=tokenizer.encode(text, add_special_tokens=False),
            params=SamplingParams(temperature=0.0, max_tokens=item.max_tokens),
            workload="chat",
        )


def _phase(before: Guarded, now: Guarded, prompt_tokens: int) -> Phase:
    """What came between two states of a use."""

    def gained(names: Sequence[str]) -> list[float]:
        return [getattr(now, name) - getattr(before, name) for name in names]

    requests, texts, positions, agreed, kl_positions, nats = gained(
        ("requests", "texts", "positions", "agreed", "kl_positions", "kl_nats")
    )
    return Phase(
        prompt_tokens=prompt_tokens,
        requests=int(requests),
        texts=int(texts),
        positions=int(positions),
        agreement=agreed / positions if positions else None,
        kl=nats / kl_positions if kl_positions else None,
    )
