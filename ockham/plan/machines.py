"""Other machines: what a simulation needs to know of one, and which of them serve a load cheapest.

Mélange (Griggs et al. 2024, arXiv:2404.14527) cuts a workload into buckets of requests of about one
size, profiles how many of them a second each kind of machine sustains under a latency target, cuts
the rate of each bucket into slices, and lets an integer program give slices to machines so that no
machine has more than it sustains and all cost least. Here the profiles are simulated.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.rates import Rates
from ockham.core.registry import find
from ockham.core.version import __version__
from ockham.lab.workloads import Request
from ockham.model.loading import plan_model
from ockham.plan.playing import Played
from ockham.plan.simulation import Prompted, simulate

if TYPE_CHECKING:
    import numpy.typing as npt

LATENCIES = ("ttft", "tpot", "e2e", "queue")
"""What targets are set for, by the names of `Played.figures`."""
SLICES = 8
"""Of each bucket's rate."""
PROFILE_REQUESTS = 48
PROFILE_STEPS = 7
"""Halvings in which the rate that a machine sustains is found: to a hundredth of the most."""
EDGE = 4
"""Buckets are this many times as long as the ones before them."""
MOST_S = 60.0


class MachineLimits(msgspec.Struct, frozen=True):
    """What a machine does in a second with so many threads, as `ockham doctor --json` says it."""

    threads: int
    read_bytes_per_s: float
    fp32_flops_per_s: float
    bf16_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None

    def arithmetic_per_s(self, name: str) -> float | None:
        """Of the arithmetic called fp32, bf16 or int8; None if it was not measured."""
        known = {
            "fp32": self.fp32_flops_per_s,
            "bf16": self.bf16_flops_per_s,
            "int8": self.int8_ops_per_s,
        }
        return known[name]


class Machine(msgspec.Struct, frozen=True):
    """A machine as `ockham doctor --json` describes it there."""

    name: str
    limits: tuple[MachineLimits, ...]
    memory_bytes: int
    """That an engine may take."""

    @property
    def best(self) -> MachineLimits:
        """With the most threads."""
        return max(self.limits, key=lambda each: each.threads)

    @property
    def one_thread(self) -> MachineLimits:
        return min(self.limits, key=lambda each: each.threads)


class _Report(msgspec.Struct):
    """What is read of a report of `ockham doctor`."""

    ockham: str
    limits: list[MachineLimits]
    memory_allowed_bytes: int
    processor: str = ""


def read_machine(path: Path) -> Machine:
    """The machine that a file of `ockham doctor --json` describes. Raises ConfigError for a file
    that is none, of another version, or without limits."""
    again = "write it again there with `ockham doctor --json`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the machine {path} cannot be read ({error.strerror}); {again}."
        ) from None
    try:
        version = msgspec.json.decode(data, type=_Version).ockham
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} describes no machine ({error}); {again}.") from None
    if version != __version__:
        raise ConfigError(
            f"{path} was written by Ockham {version}, and this is {__version__}; {again}, with "
            "this version."
        )
    try:
        report = msgspec.json.decode(data, type=_Report)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} describes no machine ({error}); {again}.") from None
    speeds = [
        speed
        for each in report.limits
        for speed in (each.threads, each.read_bytes_per_s, each.fp32_flops_per_s)
    ]
    if not speeds or report.memory_allowed_bytes <= 0:
        raise ConfigError(f"{path} has no limits of the machine; {again}, without --no-measure.")
    if not all(0.0 < speed < math.inf for speed in speeds):
        raise ConfigError(f"{path} has limits that no machine has; {again}.")
    return Machine(path.stem, tuple(report.limits), report.memory_allowed_bytes)


class _Version(msgspec.Struct):
    ockham: str


def rates_on(
    machine: Machine, rates: Rates, arithmetic: str, one_thread_flops_per_s: float
) -> Rates:
    """The rates of another machine: those of this one, scaled by its limits.

    `arithmetic` is that of most weights (fp32, bf16 or int8), which `rates.flops_per_s` is of;
    `one_thread_flops_per_s` are fp32 FLOPs of one thread here, by which bookkeeping is scaled. What
    caches hold, and kernels for instructions that only one of the two has, are not known. Raises
    ConfigError for a machine whose arithmetic was not measured.
    """
    best = machine.best
    flops_per_s = best.arithmetic_per_s(arithmetic)
    if flops_per_s is None:
        raise ConfigError(
            f"the machine {machine.name!r} has no rate of {arithmetic}, which the model's weights "
            "are multiplied in: its compiled kernels are missing. Build them there, and write the "
            "file again."
        )
    slower = one_thread_flops_per_s / machine.one_thread.fp32_flops_per_s
    return replace(
        rates.at(best.read_bytes_per_s, flops_per_s),
        loop_s=rates.loop_s * slower,
        step_s=rates.step_s * slower,
        sequence_s=rates.sequence_s * slower,
        logit_s=rates.logit_s * slower,
        drawn_s=rates.drawn_s * slower,
    )


def arithmetic_of_model(config: EngineConfig) -> str:
    """What most weights of a configuration are multiplied in: fp32, bf16 or int8."""
    planned = plan_model(config)
    planned.source.close()
    found: str = find("format", planned.format_names[0]).cls.arithmetic  # type: ignore[attr-defined]
    return found


# -- a mix of machines -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Priced:
    """A kind of machine that can be had for a price."""

    machine: Machine
    per_hour: float


def parse_machines(text: str) -> list[Priced]:
    """Machines with their prices, as in `a.json:0.10,b.json:0.35`. Raises ConfigError."""
    found: list[Priced] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        path, colon, price = part.rpartition(":")
        try:
            per_hour = float(price) if colon else math.nan
        except ValueError:
            per_hour = math.nan
        if not 0.0 < per_hour < math.inf:
            raise ConfigError(
                f"{part!r} must name a file and a price for an hour, such as a.json:0.10."
            )
        machine = read_machine(Path(path))
        if machine.name in (each.machine.name for each in found):
            raise ConfigError(
                f"two machines are called {machine.name!r}, by the names of their files; give "
                "each another name."
            )
        found.append(Priced(machine, per_hour))
    if not found:
        raise ConfigError("no machine is named; write a.json:0.10,b.json:0.35.")
    return found


class Bucket(msgspec.Struct, frozen=True):
    """Requests of about one size, of which so many come in a second."""

    prompt_tokens: int
    output_tokens: int
    rate: float


def histogram(requests: Prompted, rate: float) -> list[Bucket]:
    """A workload by the sizes of its prompts and answers, the borders of which are powers of
    `EDGE`; each bucket with its mean sizes and its share of `rate` requests in a second. Raises
    ConfigError for a workload of nothing, or a rate that is none."""
    if not requests:
        raise ConfigError("the workload has no request.")
    if not 0.0 < rate < math.inf:
        raise ConfigError(f"the rate must be above 0 requests in a second, got {rate}.")
    sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for request, prompt in requests:
        size = len(prompt), request.n * request.max_tokens
        key = (_border(size[0]), _border(size[1]))
        sizes.setdefault(key, []).append(size)
    return [
        Bucket(
            prompt_tokens=max(1, round(float(np.mean([prompt for prompt, _ in own])))),
            output_tokens=max(1, round(float(np.mean([answer for _, answer in own])))),
            rate=rate * len(own) / len(requests),
        )
        for _, own in sorted(sizes.items())
    ]


def _border(tokens: int) -> int:
    return math.floor(math.log(max(1, tokens), EDGE))


class Sustained(msgspec.Struct, frozen=True):
    """How many requests of a bucket a machine sustains in a second; 0 where not even one alone
    meets the target, and then `misses` says what it misses."""

    rate: float
    misses: dict[str, float]
    """The figures of one request alone that are above the target."""


def sustained(
    config: EngineConfig,
    bucket: Bucket,
    target: Mapping[str, float],
    rates: Rates,
    *,
    available_bytes: int | None = None,
    seed: int = 0,
) -> Sustained:
    """The most requests of a bucket in a second under which a machine of these rates meets a
    target: the largest value of some of `Played.figures`. Requests come at random times and share
    nothing. Raises ConfigError for a target that is no latency."""
    check_target(target)

    def played(rate: float, count: int) -> Played:
        return simulate(
            config,
            _requests_of(bucket, count, seed),
            rates=rates,
            rate=rate,
            seed=seed,
            available_bytes=available_bytes,
            factor=0.0,
        )

    alone = _missed(played(math.inf, 1), target)
    if alone:
        return Sustained(0.0, alone)
    burst = played(math.inf, PROFILE_REQUESTS)
    low, high = 0.0, PROFILE_REQUESTS / burst.seconds
    if not _missed(burst, target):
        return Sustained(high, {})
    for _ in range(PROFILE_STEPS):
        middle = (low + high) / 2
        if _missed(played(middle, PROFILE_REQUESTS), target):
            high = middle
        else:
            low = middle
    return Sustained(low, {})


def check_target(target: Mapping[str, float]) -> None:
    """Raises ConfigError unless these are latencies, by the names of `Played.figures`, and what
    they may be at most."""
    if not target:
        raise ConfigError("a load has a target of latency; give one, such as ttft_p95<=0.5.")
    for name, value in target.items():
        kind, _, percentile = name.partition("_p")
        if kind not in LATENCIES or percentile not in ("50", "95", "99"):
            raise ConfigError(
                f"{name!r} is no latency; a target is of {', '.join(LATENCIES)}, such as ttft_p95."
            )
        if not 0.0 < value < math.inf:
            raise ConfigError(f"{name} must be above 0 seconds, got {value}.")


def _missed(played: Played, target: Mapping[str, float]) -> dict[str, float]:
    figures = played.figures()
    return {
        name: figures[name]
        for name, most in target.items()
        if name in figures and figures[name] > most
    }


def _requests_of(bucket: Bucket, count: int, seed: int) -> Prompted:
    rng = Random(seed)
    found = []
    for number in range(count):
        prompt = [rng.randrange(1, 256) for _ in range(bucket.prompt_tokens)]
        request = Request(
            id=f"request-{number}", prompt_token_ids=prompt, max_tokens=bucket.output_tokens
        )
        found.append((request, prompt))
    return found


class Mix(msgspec.Struct, frozen=True):
    """Which machines serve a load, how many of each, and what of it."""

    machines: tuple[str, ...]
    counts: tuple[int, ...]
    per_hour: float
    buckets: tuple[Bucket, ...]
    shares: tuple[tuple[float, ...], ...]
    """Of each machine, the share of each bucket that it gets."""
    sustained: tuple[tuple[float, ...], ...]
    """Of each machine, the requests of each bucket in a second that one of it sustains."""
    alone: tuple[float | None, ...]
    """What an hour costs with machines of one kind alone; None where they cannot serve it."""

    def lines(self) -> list[str]:
        """A table for people."""
        found = [f"{'prompt':>8} {'answer':>8} {'rate':>8}  " + "  ".join(self._heads())]
        for number, bucket in enumerate(self.buckets):
            cells = [
                f"{self.sustained[m][number]:8.2f}/s {self.shares[m][number]:5.0%}"
                for m in range(len(self.machines))
            ]
            found.append(
                f"{bucket.prompt_tokens:8} {bucket.output_tokens:8} {bucket.rate:6.2f}/s  "
                + "  ".join(cells)
            )
        taken = ", ".join(
            f"{count} x {name}"
            for name, count in zip(self.machines, self.counts, strict=True)
            if count
        )
        found.append(f"cheapest: {taken}: {self.per_hour:.4g} an hour")
        for name, price in zip(self.machines, self.alone, strict=True):
            told = "cannot serve it" if price is None else f"{price:.4g} an hour"
            found.append(f"{name} alone: {told}")
        return found

    def _heads(self) -> list[str]:
        return [f"{name[:16]:>16}" for name in self.machines]


def cheapest_mix(
    config: EngineConfig,
    machines: Sequence[Priced],
    requests: Prompted,
    rate: float,
    target: Mapping[str, float],
    *,
    rates: Rates,
    one_thread_flops_per_s: float,
    slices: int = SLICES,
    seed: int = 0,
) -> Mix:
    """The machines that serve so many requests of a workload in a second at the lowest price, each
    of them within a target of latency.

    `rates` are this machine's, for the configuration's model, and `one_thread_flops_per_s` is as in
    `rates_on`. Raises ConfigError where a bucket meets the target on no machine, saying what it
    misses; DoesNotFit where the model fits none.
    """
    require_solver()
    check_target(target)
    if not 1 <= slices <= 1000:
        raise ConfigError(f"slices must be from 1 to 1000, got {slices}.")
    buckets = histogram(requests, rate)
    arithmetic = arithmetic_of_model(config)
    profiles = []
    for priced in machines:
        there = rates_on(priced.machine, rates, arithmetic, one_thread_flops_per_s)
        memory = priced.machine.memory_bytes
        profiles.append(
            [
                sustained(config, bucket, target, there, available_bytes=memory, seed=seed)
                for bucket in buckets
            ]
        )
    _check_served(buckets, machines, profiles, target)
    needs = [
        [
            bucket.rate / slices / found.rate if found.rate else math.inf
            for bucket, found in zip(buckets, own, strict=True)
        ]
        for own in profiles
    ]
    prices = [priced.per_hour for priced in machines]
    chosen = cheapest(prices, needs, slices)
    assert chosen is not None, "every bucket can be served"
    counts, given = chosen
    return Mix(
        machines=tuple(priced.machine.name for priced in machines),
        counts=tuple(counts),
        per_hour=sum(price * count for price, count in zip(prices, counts, strict=True)),
        buckets=tuple(buckets),
        shares=tuple(tuple(each / slices for each in own) for own in given),
        sustained=tuple(tuple(found.rate for found in own) for own in profiles),
        alone=tuple(
            price * _alone(own, slices) if math.isfinite(sum(own)) else None
            for price, own in zip(prices, needs, strict=True)
        ),
    )


def _alone(needs: Sequence[float], slices: int) -> int:
    return math.ceil(slices * sum(needs) - 1e-9)


def _check_served(
    buckets: Sequence[Bucket],
    machines: Sequence[Priced],
    profiles: Sequence[Sequence[Sustained]],
    target: Mapping[str, float],
) -> None:
    for number, bucket in enumerate(buckets):
        own = [profile[number] for profile in profiles]
        if any(found.rate for found in own):
            continue
        over = [max(value / target[name] for name, value in each.misses.items()) for each in own]
        nearest = int(np.argmin(over)) if over else 0
        misses = ", ".join(
            f"{name} {value:.3g} s instead of {target[name]:.3g} s"
            for name, value in own[nearest].misses.items()
        )
        raise ConfigError(
            f"no machine answers {bucket.prompt_tokens} + {bucket.output_tokens} tokens within the "
            f"target; the nearest is {machines[nearest].machine.name!r}: {misses}. Raise the "
            "target, or name a faster machine."
        )


def require_solver() -> None:
    """Raises ConfigError, saying what to install, if SciPy is missing."""
    if importlib.util.find_spec("scipy") is None:
        raise ConfigError(
            "a mix of machines needs scipy, which serving does not; install it with "
            "pip install 'ockham[plan]'."
        )


def cheapest(
    prices: Sequence[float], needs: Sequence[Sequence[float]], slices: int
) -> tuple[list[int], list[list[int]]] | None:
    """How many of each machine to take, and how many slices of each bucket each kind gets, so that
    all slices are given and the price is least. `needs[m][b]` is what share of a machine m a slice
    of bucket b takes, inf where it cannot; None if nobody can."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    need = np.array(needs, np.float64)
    kinds, buckets = need.shape
    can = np.isfinite(need)
    if not can.any(axis=0).all():
        return None
    # The variables are counts (kinds), then slices (kinds * buckets).
    size = kinds + kinds * buckets
    given: npt.NDArray[np.float64] = np.zeros((buckets, size))
    load: npt.NDArray[np.float64] = np.zeros((kinds, size))
    for kind in range(kinds):
        own = kinds + kind * buckets
        load[kind, kind] = -1.0
        for bucket in range(buckets):
            given[bucket, own + bucket] = 1.0
            load[kind, own + bucket] = need[kind, bucket] if can[kind, bucket] else 0.0
    most = np.ceil(slices * np.where(can, need, 0.0).sum(axis=1)) + 1
    upper = np.concatenate([most, (slices * can).reshape(-1)])
    found = milp(
        np.concatenate([np.array(prices) / max(prices), np.zeros(kinds * buckets)]),
        constraints=[
            LinearConstraint(given, slices, slices),
            LinearConstraint(load, -np.inf, 0.0),
        ],
        integrality=np.ones(size),
        bounds=Bounds(0, upper),
        options={"mip_rel_gap": 0.0, "time_limit": MOST_S},
    )
    if found.x is None:
        return None
    whole = np.rint(found.x).astype(int)
    return whole[:kinds].tolist(), whole[kinds:].reshape(kinds, buckets).tolist()
