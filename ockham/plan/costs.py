"""What configurations cost on one workload: predicted by simulation, and measured in turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.cost import StepCost
from ockham.core.errors import ConfigError
from ockham.core.price import joules_of
from ockham.core.rates import AttentionRate, ProductRate, Rates
from ockham.core.registry import name_of
from ockham.engine.engine import Engine
from ockham.kernels.cores import allowed_cores
from ockham.lab.calibrate import attention_rate, calibrate, probe_shape, product_rate
from ockham.lab.kernels.limits import Limits
from ockham.model.loading import load_model, plan_model
from ockham.model.program.costs import cost_of
from ockham.plan.clock import RealClock
from ockham.plan.log import Log, Record, digest
from ockham.plan.playing import Played, play
from ockham.plan.result import Figures
from ockham.plan.simulation import Prompted, simulate
from ockham.plan.space import Point

SECONDS_PER_HOUR = 3600


class Costs:
    """The cost of configurations beside `base`, on the requests of one workload.

    `rate` is the mean number of sessions that begin in a second; None takes the requests' own
    times. `answers` are what the exact configuration says, by request: drafts are accepted by them.
    `sources` gives the rates of this machine for a configuration's number of threads, and `there`
    makes of them those of the machine that is planned for, which has `memory_bytes` (None: what is
    free here). `hourly` is the price of an hour of it.
    """

    def __init__(
        self,
        base: EngineConfig,
        requests: Prompted,
        answers: Mapping[str, Sequence[int]],
        *,
        rate: float | None = None,
        seed: int = 0,
        sources: Callable[[EngineConfig], RateSource],
        there: Callable[[Rates], Rates] = lambda rates: rates,
        hourly: float = 1.0,
        memory_bytes: int | None = None,
    ) -> None:
        self.base, self.requests, self.answers = base, requests, answers
        self._rate, self._seed, self._hourly = rate, seed, hourly
        self._make_source, self._there = sources, there
        self._memory_bytes = memory_bytes
        self._sources: dict[int | None, RateSource] = {}

    def predict(self, point: Point) -> Figures:
        """The figures of a configuration by simulation. Raises ConfigError or DoesNotFit where it
        cannot run or cannot be simulated."""
        config = point.config(self.base)
        played = simulate(
            config,
            self.requests,
            rates=self._rates_of(config),
            rate=self._rate,
            seed=self._seed,
            answers=self.answers,
            available_bytes=self._memory_bytes,
        )
        return self._figures(played)

    def measure(self, point: Point, between: Callable[[], None] = lambda: None) -> Figures:
        """The figures of a configuration whose engine is started anew and really answers the
        workload. `between` is called between steps, and may end the run by what it raises. Raises
        as making the engine does."""
        engine = Engine(point.config(self.base))
        try:
            played = play(
                engine,
                self.requests,
                RealClock(time.perf_counter),
                rate=self._rate,
                seed=self._seed,
                between=between,
            )
        finally:
            engine.close()
        return self._figures(played)

    # -- inside --------------------------------------------------------------------------------

    def _figures(self, played: Played) -> Figures:
        own = played.figures()
        per_request_s = played.busy_s / len(played.requests)
        moved = StepCost(played.flops, played.bytes_read, 0, 0)
        figures = {
            "seconds": per_request_s,
            "cost": per_request_s * self._hourly / SECONDS_PER_HOUR,
            "bytes": float(played.held_bytes),
            "memory": float(played.held_bytes),
            "joules": joules_of(moved) / len(played.requests),
            "tokens_per_second": own["tokens_per_s"],
        }
        for name in (
            f"{of}_p{percent}" for of in ("ttft", "tpot", "e2e") for percent in (50, 95, 99)
        ):
            if name in own:
                figures[name] = own[name]
        return figures

    def _rates_of(self, config: EngineConfig) -> Rates:
        """Those of the base, with the products of the configuration's formats and the attention
        over its types of state."""
        source = self._source(config.threads)
        rates = source.rates
        if config.quantization != self.base.quantization or config.model != self.base.model:
            rates = dataclasses.replace(rates, products=self._products(config, source))
        if config.kv_cache_dtype != self.base.kv_cache_dtype:
            attention = source.attention(config.kv_cache_dtype)
            rates = dataclasses.replace(rates, attention=attention)
        return self._there(rates)

    def _products(self, config: EngineConfig, source: RateSource) -> dict[str, ProductRate]:
        """The rates of every format that the model of a configuration has."""
        planned = plan_model(config)
        planned.source.close()
        layouts = planned.plan.layouts(planned.description)
        found = dict(source.rates.products)
        given = config.quantization or ""
        for product in cost_of(planned.program, layouts).products:
            name = product.format
            if name.partition(":")[0] == name_of(given):
                found[name] = source.product(given)
            elif name not in found:
                found[name] = source.product(name)
        return found

    def _source(self, threads: int | None) -> RateSource:
        if threads not in self._sources:
            config = msgspec.structs.replace(self.base, threads=threads)
            self._sources[threads] = self._make_source(config)
        return self._sources[threads]


class RateSource:
    """The rates of this machine for one model and number of threads.

    What a kernel takes is measured when it is first asked for, and kept in the log: a later plan
    takes it over at the speed that the cores have then. Raises ConfigError where the compiled
    kernels are missing.
    """

    def __init__(self, config: EngineConfig, log: Log, machine: str) -> None:
        self._limits = Limits(config.threads or allowed_cores())
        loaded = load_model(config)
        self._program = loaded.program
        self.rates = calibrate(loaded.program, loaded.state_dtype, self._limits)
        self._shape = probe_shape(loaded.program)
        of = {"machine": machine, "threads": config.threads, "inputs": self._shape[1]}
        self._log, self._context = log, digest(of)
        self._known: dict[str, ProductRate] = {}
        self._attention: dict[str, AttentionRate] = {}
        for record in log.of(self._context, "rates"):
            self._known[record.text] = _read_rate(record.figures, self.rates.flops_per_s)

    def product(self, form: str) -> ProductRate:
        """Of a weight format, by its name and options."""
        if form not in self._known:
            found = self._known[form] = product_rate(form, self._shape, self._limits)
            figures = _written_rate(found, self.rates.flops_per_s)
            self._log.add(Record(context=self._context, kind="rates", text=form, figures=figures))
        return self._known[form]

    def attention(self, state_dtype: str) -> AttentionRate:
        """Over state of a type."""
        if state_dtype not in self._attention:
            found = attention_rate(self._program, state_dtype, self._limits)
            self._attention[state_dtype] = found
        return self._attention[state_dtype]


_ROWS = "weight_s at "


def _written_rate(rate: ProductRate, flops_per_s: float) -> Figures:
    by_rows = zip(rate.rows, rate.weight_s, strict=True)
    return {
        "flops_per_s": flops_per_s,
        "stream": rate.stream,
        "exposed": rate.exposed,
        "value_s": rate.value_s,
        **{f"{_ROWS}{rows}": seconds for rows, seconds in by_rows},
    }


def _read_rate(figures: Figures, flops_per_s: float) -> ProductRate:
    """At the cores' present speed."""
    slower = figures["flops_per_s"] / flops_per_s
    by_rows = sorted(
        (int(name.removeprefix(_ROWS)), seconds * slower)
        for name, seconds in figures.items()
        if name.startswith(_ROWS)
    )
    return ProductRate(
        rows=tuple(rows for rows, _ in by_rows),
        weight_s=tuple(seconds for _, seconds in by_rows),
        stream=figures["stream"],
        exposed=figures["exposed"],
        value_s=figures["value_s"] * slower,
    )


def check_workload(requests: Prompted, engine: Engine) -> Prompted:
    """The requests that fit into the model's context, each with what comes before it. Raises
    ConfigError if none does."""
    kept, known = [], set[str]()
    for request, tokens in requests:
        if request.after is not None and request.after not in known:
            continue
        if len(tokens) + request.max_tokens <= engine.max_model_len:
            kept.append((request, tokens))
            known.add(request.id)
    if not kept:
        raise ConfigError(
            f"no request of the workload fits into the context of {engine.max_model_len} tokens; "
            "raise --max-model-len, or take a shorter workload."
        )
    return kept
