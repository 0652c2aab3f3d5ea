"""What recipes of evidence measure with: engines of one model, requests, and timed rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, TypeVar

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.collect import Collector
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.engine.offline import OfflineBatch
from ockham.lab.cases import task_cases
from ockham.lab.evaluate import Result, evaluate
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.statistics import paired_ratio
from ockham.lab.tasks.suites import Suite, suite_of

T = TypeVar("T")

POOL_BYTES = 256 << 20
"""State of an engine that measures: enough for every recipe on the lab model."""

ANSWERED = 16
"""Items of each task, where two engines are compared by their answers."""
MOST_ANSWERED = 128
"""No recipe asks for more tokens than this after a prompt."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a set of requests gave."""

    tokens: list[list[list[int]]]
    """Of each request, of each choice."""
    ledger: Ledger
    """Of all requests together."""
    seconds: float
    observed: float = 0.0
    """What the recipe watched for, in its own unit."""


@dataclass(slots=True)
class Bench:
    """One model, and how often and how thoroughly it is measured."""

    config: EngineConfig
    rounds: int = 5
    seed: int = 0
    workload: str = ""
    """Name of the workload that the prompts are of; "" for random ones."""
    workload_prompts: tuple[list[int], ...] = ()
    tell: Callable[[str], None] = lambda line: None
    """Told in words how far a measurement is."""
    real_model: Path | None = None
    """The file of a model that was trained on the real world, which formats are judged on too."""
    _engines: dict[str, Engine] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:
        """The tasks that the model is judged by."""
        return suite_of(self.config.model)

    def scores_of(self, engine: Engine, tasks: Sequence[str], items: int = ANSWERED) -> list[float]:
        """How right an engine answers so many items of each task, of all levels in turn. What an
        engine with the same settings has answered is not asked again."""
        key = repr((engine.config, engine.model.numerics_id, tasks, items))
        return self.once(key, lambda: self._scores(engine, tasks, items))

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, of the first call with this key: for what several recipes compare
        their techniques with. The key says all that decides it."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def _scores(self, engine: Engine, tasks: Sequence[str], items: int) -> list[float]:
        if engine.tokenizer is None:
            raise ConfigError("answers are compared as text: measure with a tokenizer.")
        context = engine.max_model_len
        cases = task_cases(tasks, items, self.seed, (), engine.tokenizer, context).cases
        found: list[Result] = []
        evaluate(engine, cases, found.append)
        found.sort(key=lambda result: result.key)
        return [score for each in found for score in each.scores or ()]

    def answers(self, one: Engine, other: Engine) -> tuple[list[float], list[float]]:
        """How right two engines answer the same questions of the suite's short tasks."""
        first, second = (self.scores_of(each, self.suite.short) for each in (one, other))
        return first, second

    def engine(self, **settings: object) -> Engine:
        """An engine with some settings changed; the same settings get the same engine.

        The state's pool is small, so that several engines fit, and nothing is reused from round to
        round or drafted, unless a setting says otherwise.
        """
        fields = msgspec.structs.asdict(self.config)
        fields |= {"reuse": "none", "speculative_config": "none"}
        if fields["kv_cache_memory_bytes"] is None:
            fields["kv_cache_memory_bytes"] = POOL_BYTES
        config = msgspec.convert({**fields, **settings}, EngineConfig)
        key = repr(config)
        if key not in self._engines:
            changed = ", ".join(f"{name}={value}" for name, value in settings.items())
            self.tell(f"loading {self.config.model}{f' with {changed}' if changed else ''}")
            self._engines[key] = Engine(config)
        return self._engines[key]

    def engines(self) -> list[Engine]:
        """Every engine so far."""
        return list(self._engines.values())

    def release(self) -> None:
        """Let go of every engine, so that the next recipe has the memory."""
        self._engines.clear()

    def prompts(self, engine: Engine, lengths: Sequence[int]) -> list[list[int]]:
        """Random prompts of these lengths; of a workload, the prompts that come closest to them, as
        often as must be. Raises ConfigError if the model's context has room for none."""
        if self.workload:
            return self._closest(engine, lengths)
        rng = Random(f"evidence {self.seed}")
        return [[rng.randrange(engine.vocabulary) for _ in range(length)] for length in lengths]

    def _closest(self, engine: Engine, lengths: Sequence[int]) -> list[list[int]]:
        most = engine.max_model_len - MOST_ANSWERED
        fitting = [prompt for prompt in self.workload_prompts if len(prompt) <= most]
        if not fitting:
            raise ConfigError(
                f"no prompt of the workload {self.workload!r} leaves room for {MOST_ANSWERED} more "
                f"tokens in a context of {engine.max_model_len}."
            )
        found, left = [], list(fitting)
        for length in lengths:
            closest = min(range(len(left)), key=lambda i: abs(len(left[i]) - length))
            found.append(left.pop(closest))
            left = left or list(fitting)
        return found

    def compare(
        self,
        seam: str,
        name: str,
        without: Callable[[], Outcome],
        with_: Callable[[], Outcome],
        amount: Callable[[Outcome], float],
        **facts: object,
    ) -> Row:
        """Run both in turn, round by round, after a round that is not counted.

        `amount` is what the technique saves, of one run. The order changes every round, so that a
        drift of the machine falls on both.
        """
        if self.workload:
            facts["what"] = f"{facts['what']}; prompts of the workload {self.workload}"
        runs: tuple[list[Outcome], list[Outcome]] = ([], [])
        for number in range(self.rounds + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                outcome = (without, with_)[which]()
                if number:
                    runs[which].append(outcome)
            if number:
                took = " and ".join(
                    f"{word} it {side[-1].seconds:.2f} s"
                    for word, side in zip(("without", "with"), runs, strict=True)
                )
                self.tell(f"round {number} of {self.rounds}: {took}")
            else:
                self.tell(f"{name}: a round that is not counted is done")
        speed, interval = paired_ratio(*([outcome.seconds for outcome in side] for side in runs))
        return msgspec.convert(
            {
                "seam": seam,
                "name": name,
                "without": median(map(amount, runs[0])),
                "with_": median(map(amount, runs[1])),
                "speed": speed,
                "speed_interval": interval,
                "rounds": self.rounds,
                "identical": all(
                    outcome.tokens == runs[0][0].tokens for side in runs for outcome in side
                ),
                "model": self.config.model,
                **facts,
            },
            Row,
        )


def greedy(tokens: int, **settings: object) -> SamplingParams:
    """Greedy decoding of exactly so many tokens."""
    fields = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True, **settings}
    return msgspec.convert(fields, SamplingParams)


def requests(prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Request]:
    """A request for each prompt, without text."""
    return [
        Request(request_id=str(number), prompt_token_ids=prompt, params=each, detokenize=False)
        for number, (prompt, each) in enumerate(zip(prompts, params, strict=True))
    ]


def run(engine: Engine, wanted: Sequence[Request], at_once: int | None = None) -> Outcome:
    """Run requests together, or `at_once` at a time, each group after the one before has ended."""
    outputs: dict[str, RequestOutput] = {}

    def done(output: RequestOutput) -> None:
        outputs[output.request_id] = output

    started = time.perf_counter()
    for begin in range(0, len(wanted), at_once or len(wanted)):
        drive(engine, wanted[begin : begin + (at_once or len(wanted))], done)
    return outcome_of([outputs[request.request_id] for request in wanted], started)


def run_batch(engine: Engine, wanted: Sequence[Request]) -> Outcome:
    """Run requests as one offline batch."""
    started = time.perf_counter()
    wanted = [msgspec.structs.replace(request) for request in wanted]  # they will be marked
    batch = OfflineBatch(engine, wanted)
    collectors = {request.request_id: Collector(request) for request in wanted}
    for number in batch.order:
        engine.take(wanted[number])
    while engine.has_work:
        for delta in engine.step():
            collector = collectors[delta.request_id]
            collector.add(delta)
            if collector.finished:
                batch.ended(collector)
    return outcome_of([collectors[request.request_id].output() for request in wanted], started)


def grouped_prompts(
    bench: Bench, engine: Engine, groups: int, members: int, prefix: int, question: int
) -> list[list[int]]:
    """Random questions under random prefixes, of so many tokens each, in no order."""
    rng = Random(f"groups {bench.seed}")

    def some(tokens: int) -> list[int]:
        return [rng.randrange(engine.vocabulary) for _ in range(tokens)]

    prefixes = [some(prefix) for _ in range(groups)]
    prompts = [start + some(question) for start in prefixes for _ in range(members)]
    rng.shuffle(prompts)
    return prompts


Watch = Callable[[int, list[Delta]], list[Request]]
"""Told the number of a step and what came of it; gives requests that arrive then."""


def watched(engine: Engine, wanted: Sequence[Request], watch: Watch) -> Outcome:
    """Run requests step by step, under the eyes of `watch`."""
    arrived = list(wanted)
    collectors = {request.request_id: Collector(request) for request in arrived}
    started, step = time.perf_counter(), 0
    for request in wanted:
        engine.take(request)
    while engine.has_work:
        deltas = engine.step()
        for delta in deltas:
            collectors[delta.request_id].add(delta)
        step += 1
        for request in watch(step, deltas):
            engine.take(request)
            arrived.append(request)
            collectors[request.request_id] = Collector(request)
    return outcome_of([collectors[r.request_id].output() for r in arrived], started)


def outcome_of(outputs: Sequence[RequestOutput], started: float) -> Outcome:
    """What these outputs come to; they began at `started`."""
    ledger = Ledger()
    for output in outputs:
        ledger.add(output.ledger)
    tokens = [[list(choice.token_ids) for choice in output.outputs] for output in outputs]
    return Outcome(tokens, ledger, time.perf_counter() - started)
