"""How well simulations agree with what is simulated: whole workloads, run and predicted in turns.

Each workload is run by an engine of each configuration, in this process and at the times at which
its requests come, and simulated. Both say the same tokens, those that the model itself answered
once, so that lengths and drafts are alike. A workload is run twice: with all sessions at once,
which says how many tokens a second there are, and with sessions that come one after the other,
which says how long a first token takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import Rates
from ockham.engine.engine import Engine
from ockham.kernels.cores import allowed_cores
from ockham.lab.calibrate import arithmetic_of, calibrate
from ockham.lab.kernels.limits import Limits
from ockham.lab.replay import Replay
from ockham.lab.workloads import Request, make_workload
from ockham.plan.clock import RealClock, VirtualClock
from ockham.plan.playing import Played, play, streams_of
from ockham.plan.simulation import Prompted, prompted, simulate

SIZES: Mapping[str, Mapping[str, int]] = {
    "chat": {"sessions": 8, "turns": 3},
    "documents": {"queries": 16},
    "agents": {"sessions": 6, "calls": 4},
    "batch": {"prompts": 48},
    "edit": {"prompts": 6, "max_tokens": 96},
    "samples": {"prompts": 4, "n": 4},
    "typing": {"pauses": 12},
    "long": {"prompts": 3, "max_tokens": 64},
}
"""Of each workload as much as takes seconds."""
DEFAULT_WORKLOADS = ("chat", "documents", "agents", "batch", "edit", "samples")
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "without drafts": {"speculative_config": "none"},
    "without reuse": {"speculative_config": "none", "reuse": "none"},
    "four at once": {"speculative_config": "none", "max_num_seqs": "4"},
}
"""Configurations that differ in what a simulation has to get right."""
WARM_SEED = 99
"""Of the workload that warms an engine up: another one of the same kind."""
BURST_RATE = math.inf


class Agreement(msgspec.Struct, kw_only=True):
    """One workload and configuration. Errors are predicted over measured, less 1."""

    workload: str
    variant: str
    rate: float
    """Sessions in a second, of the figures of first tokens."""
    measured: dict[str, float]
    predicted: dict[str, float]
    """`tokens_per_s` of all sessions at once; `ttft_p50` and `ttft_p95` of those that come one
    after the other."""
    simulated_per_real_s: float
    """Seconds that are simulated in a second."""

    @property
    def errors(self) -> dict[str, float]:
        return {
            name: self.predicted[name] / value - 1
            for name, value in self.measured.items()
            if name in self.predicted and value > 0
        }


APART = 0.05
"""Configurations that differ by less than this share may change places from run to run."""
FIGURES = ("tokens_per_s", "ttft_p50", "ttft_p95")


@dataclass(frozen=True, slots=True)
class Comparing:
    """How workloads are run. `load` is the share of the sessions that a configuration is predicted
    to sustain, which come in a second. With `processor_time`, runs are timed by this
    thread's processor time, and waits are skipped: other programs do not change that, and one
    thread is all that it sees."""

    load: float = 0.7
    seed: int = 0
    processor_time: bool = False


def agreements(
    config: EngineConfig,
    workloads: Mapping[str, Sequence[Request]],
    variants: Mapping[str, Mapping[str, str]],
    how: Comparing,
    progress: Callable[[str], None],
) -> Iterator[Agreement]:
    """Run and simulate each workload under each variant of a configuration, which are settings by
    name. Raises ConfigError for settings that there are not, and what cannot be simulated."""
    configs = {name: varied(config, settings) for name, settings in variants.items()}
    if how.processor_time and config.threads != 1:
        raise ConfigError("processor time is that of one thread; give --threads 1.")
    machine = _Machine(Limits(config.threads or allowed_cores()), progress)
    for workload, requests in workloads.items():
        asked = prompted(config, requests)
        warm = prompted(config, _warm_up(workload, requests))
        answers: dict[str, list[int]] = {}
        for variant, one in configs.items():
            progress(f"{workload}, {variant}")
            engine = _engine(one, how)
            try:
                if not answers:
                    play(engine, asked, _clock_of(engine), rate=BURST_RATE, answers=answers)
                    engine.close()
                    engine = _engine(one, how)
                found = _Pair(engine, one, asked, answers, machine, how)
                found.warm_up(warm)
                burst = found.run(BURST_RATE)
                sessions = sum(request.after is None for request in requests)
                rate = how.load * sessions / burst.predicted.seconds
            finally:
                engine.close()
            engine = _engine(one, how)
            try:
                found = _Pair(engine, one, asked, answers, machine, how)
                found.warm_up(warm)
                spread = found.run(rate)
            finally:
                engine.close()
            yield _agreement(workload, variant, rate, burst, spread)


def varied(config: EngineConfig, settings: Mapping[str, str]) -> EngineConfig:
    """A configuration with some settings changed, each given as text."""
    for name in settings:
        if name not in EngineConfig.__struct_fields__:
            raise ConfigError(f"there is no setting {name!r}.")
    try:
        return msgspec.convert(
            {**msgspec.to_builtins(config), **settings}, EngineConfig, strict=False
        )
    except msgspec.ValidationError as error:
        shown = " ".join(f"{name}={value}" for name, value in settings.items())
        raise ConfigError(f"{shown}: {error}") from error


def sized(workload: str, seed: int) -> list[Request]:
    """A workload of a kind, of a size that takes seconds."""
    return make_workload(workload, dict(SIZES.get(workload, {}))).requests(seed)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, with mean ranks of those that tie; NaN where one has no order."""
    ranks = [_ranks(each) for each in (one, other)]
    deviations = [each - each.mean() for each in ranks]
    norm = math.sqrt(math.prod(float((each**2).sum()) for each in deviations))
    return float((deviations[0] * deviations[1]).sum()) / norm if norm else math.nan


def pairs_in_order(
    measured: Sequence[float], predicted: Sequence[float], apart: float = APART
) -> tuple[int, int]:
    """Of the pairs whose measured figures differ by more than a share of the smaller: how many
    are predicted in the same order, and how many there are."""
    found = [
        (measured[j] - measured[i]) * (predicted[j] - predicted[i]) > 0
        for i, j in itertools.combinations(range(len(measured)), 2)
        if abs(measured[j] - measured[i]) > apart * min(measured[i], measured[j])
    ]
    return sum(found), len(found)


# -- inside ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Both:
    measured: Played
    predicted: Played


class _Machine:
    """This machine's rates for each configuration, and how fast it is just now."""

    def __init__(self, limits: Limits, progress: Callable[[str], None]) -> None:
        self._limits, self._progress = limits, progress
        self._rates: dict[tuple[str, ...], Rates] = {}

    def rates_of(self, engine: Engine) -> Rates:
        """Probed once for the same formats of weights and state."""
        key = (engine.model.weight_format, engine.model.state_dtype)
        if key not in self._rates:
            self._progress(f"probing {' '.join(key)}")
            self._rates[key] = calibrate(engine.model.program, key[1], self._limits)
        return self._rates[key]

    def speeds(self, engine: Engine) -> tuple[list[float], list[float]]:
        arithmetic = arithmetic_of(engine.model.program)
        return self._limits.read_rates(), self._limits.arithmetic_rates(arithmetic)


class _Pair:
    """An engine, and simulations of it."""

    def __init__(
        self,
        engine: Engine,
        config: EngineConfig,
        asked: Prompted,
        answers: Mapping[str, Sequence[int]],
        machine: _Machine,
        how: Comparing,
    ) -> None:
        self._engine, self._config, self._asked = engine, config, asked
        self._answers, self._machine, self._how = answers, machine, how
        self._rates = machine.rates_of(engine)
        self._executor = engine.executor
        self._warm: Prompted = ()

    def warm_up(self, warm: Prompted) -> None:
        """What is done once is done, and the system has backed the memory of the state."""
        state = self._engine.state
        tokens = sum(
            len(prompt) + request.n * request.max_tokens
            for request, prompt in (*warm, *self._asked)
        )
        for number, group in enumerate(state.groups):
            pages = min(group.pages, 2 * tokens // group.page_tokens)
            for index in range(len(group.layers)):
                state.planes.back(number, index, pages)
        self._warm = warm
        play(self._engine, warm, _clock_of(self._engine), rate=BURST_RATE)

    def run(self, rate: float) -> _Both:
        engine, seed = self._engine, self._how.seed
        streams = streams_of(self._asked, self._answers, engine.vocabulary)
        engine.executor = Replay(self._executor, streams)
        reads, flops = self._machine.speeds(engine)
        pauses = math.isfinite(rate)
        measured = play(engine, self._asked, _clock_of(engine), rate=rate, seed=seed, pauses=pauses)
        more_reads, more_flops = self._machine.speeds(engine)
        rates = self._rates.at(median(reads + more_reads), max(flops + more_flops))
        predicted = simulate(
            self._config,
            self._asked,
            rates=rates,
            rate=rate,
            seed=seed,
            pauses=pauses,
            answers=self._answers,
            before=self._warm,
        )
        return _Both(measured, predicted)


def _engine(config: EngineConfig, how: Comparing) -> Engine:
    return Engine(config, clock=VirtualClock()) if how.processor_time else Engine(config)


def _clock_of(engine: Engine) -> VirtualClock | RealClock:
    clock = engine.clock
    return clock if isinstance(clock, VirtualClock) else RealClock(clock)


def _warm_up(workload: str, requests: Sequence[Request]) -> Sequence[Request]:
    return sized(workload, WARM_SEED) if workload in SIZES else requests[:1]


def _agreement(workload: str, variant: str, rate: float, burst: _Both, spread: _Both) -> Agreement:
    def figures(burst: Played, spread: Played) -> dict[str, float]:
        found = spread.figures() | {"tokens_per_s": burst.tokens_per_s}
        return {name: found[name] for name in FIGURES}

    return Agreement(
        workload=workload,
        variant=variant,
        rate=rate,
        measured=figures(burst.measured, spread.measured),
        predicted=figures(burst.predicted, spread.predicted),
        simulated_per_real_s=burst.predicted.seconds / burst.predicted.real_s,
    )


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    found = np.array(
        [
            sum(other < value for other in values)
            + (sum(other == value for other in values) - 1) / 2
            for value in values
        ]
    )
    return found.astype(np.float64)
