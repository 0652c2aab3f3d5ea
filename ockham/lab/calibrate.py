"""Measures the rates that the cost model predicts seconds with: one probe for each.

No probe runs the model: products are of a shape of their own in the model's formats, attention has
the model's heads, and the engine's bookkeeping is that of the built-in model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.cost import keys_seen
from ockham.core.errors import ConfigError, ModelError
from ockham.core.rates import AttentionRate, ProductRate, Rates, keys_to_block_ends
from ockham.core.registry import make
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Format, Linear
from ockham.core.state_dtype import state_types
from ockham.core.step import Step, StepOutput
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.kernels.base import Executor, Run
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.cpu_layout import native_matrix
from ockham.kernels.native import core
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    Embed,
    FeedForward,
    LatentInput,
    Program,
    kernel_of,
)
from ockham.kernels.sampling import Draw
from ockham.lab.kernels.attention import attention_case
from ockham.lab.kernels.limits import BURST_BYTES, COLD_BYTES, Limits
from ockham.lab.kernels.products import cold_matrices, matrices, rate_of
from ockham.lab.kernels.steps import no_state
from ockham.model.packed.packing import plain_format

if TYPE_CHECKING:
    from ockham.kernels import _cpu

PROBE_SHAPE = (1024, 2048)
"""Outputs and inputs, at most, of the matrix that is probed: a second-level cache or two hold it.
Its inputs are as many as most of the model's weights have: short sums cost more for each weight."""
INPUTS_MULTIPLE = 256
"""Every format packs so many inputs."""
SMALL_SHAPE = (256, 256)
PROBE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BALANCED_ROWS = (8, 16, 32)
"""Where reading and arithmetic take about the same time."""
VALUE_ROWS = 64
KEYS, FEW_KEYS = 1024, 16
PROMPT_ROWS = 128
"""Few enough that a call ends before the system gives the core to another program."""
BURST_S = 0.02
BURSTS = 5
GREEDY, DRAWN = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)
BOOKKEEPING = (1, 32)
"""Sequences of the engine's probe, and the steps that it runs."""
BOOKKEEPING_STEPS = 40
REQUESTS, ANSWER_TOKENS = 24, 12
"""Of the probe of bookkeeping beside weights."""


class Probes:
    """Timings, each scaled to one speed of the cores: the clock changes while they are taken."""

    def __init__(self, limits: Limits, arithmetic: _cpu.Rate) -> None:
        self.limits, self._arithmetic = limits, arithmetic
        self.pool, self.isa = limits.pool, limits.isa
        self.flops_per_s = max(self._speeds())
        """The speed that all timings are scaled to."""

    def seconds(self, run: Callable[[int], list[float]]) -> float:
        """The seconds of a call, in bursts of a fixed time: the lower quartile of each, as other
        programs may have the core for a while."""
        first = run(3)
        calls = max(3, min(1000, int(BURST_S / max(1e-9, min(first)))))
        found = []
        for _ in range(BURSTS):
            speeds = self._speeds()
            times = run(calls)
            speeds += self._speeds()
            lower = float(np.percentile(times, 25))
            # A burst that was interrupted says nothing of the speed of the core.
            found.append(lower * max(speeds) / self.flops_per_s)
        return median(found)

    def beside_reading(self, run: Callable[[int], list[float]]) -> list[tuple[float, float]]:
        """Of some bursts, the seconds of a call and the rate of reading memory just then: what
        others do to memory slows both."""
        calls = max(3, min(1000, int(BURST_S / max(1e-9, min(run(3))))))
        found = []
        for _ in range(BURSTS):
            rates = self.limits.read_rates()
            seconds = median(run(calls))
            found.append((seconds, median(rates + self.limits.read_rates())))
        return found

    def stream(self, run: Callable[[int], list[float]], nbytes: int) -> float:
        """The share of the rate of reading memory that calls reach which read `nbytes` each. A
        kernel cannot be faster than memory is: more than 1 is noise."""
        shares = [nbytes / seconds / rate for seconds, rate in self.beside_reading(run)]
        return min(1.0, median(shares))

    def _speeds(self) -> list[float]:
        return self.limits.arithmetic_rates(self._arithmetic)

    def reading(self) -> list[float]:
        return [rate for _ in range(5) for rate in self.limits.read_rates()]


def calibrate(
    program: Program, state_dtype: str, limits: Limits, also: Iterable[Linear] = ()
) -> Rates:
    """The rates of this machine, now, for the kernels of a program, and those of other matrices.
    Takes some seconds."""
    probes = Probes(limits, arithmetic_of(program))
    loop_s = _loop_seconds(probes)
    embed = program.ops[0]
    assert isinstance(embed, Embed), "a program begins with the embedding"
    weights = sum(linear.nbytes for linear in program.matrices().values())
    bookkeeping = _bookkeeping(limits, weights)
    shape = probe_shape(program)
    return Rates(
        flops_per_s=probes.flops_per_s,
        read_bytes_per_s=median(probes.reading()),
        products={
            name: _product_rate(linear, shape, probes, loop_s)
            for name, linear in ({kernel_of(each): each for each in also} | _kinds(program)).items()
        },
        attention=_attention_rate(program, state_dtype, probes),
        loop_s=loop_s,
        gate_value_s=_gate_value_seconds(program, probes),
        rotation_value_s=_rotation_value_seconds(program, state_dtype, probes),
        logit_s=_logit_seconds(embed, probes, GREEDY),
        drawn_s=_logit_seconds(embed, probes, DRAWN),
        step_s=bookkeeping[0],
        sequence_s=bookkeeping[1],
        cold=_coldness(limits, weights),
        resident_bytes_per_s=median(limits.resident_rates(weights)),
        cache_bytes=_cache_bytes(),
    )


def product_rate(form: str, shape: tuple[int, int], limits: Limits) -> ProductRate:
    """The rate of products of one weight format, by its name and options, with a matrix of so many
    outputs and inputs. Takes a second or two. Raises ConfigError for a format that only holds what
    a checkpoint has packed."""
    linear = _packed(form, shape)
    probes = Probes(limits, rate_of(linear))
    return _product_rate(linear, shape, probes, _loop_seconds(probes))


def probe_shape(program: Program) -> tuple[int, int]:
    """Outputs and inputs of the matrix that stands for a program's when rates are probed."""
    outputs, most = PROBE_SHAPE
    weights: Counter[int] = Counter()
    for linears in matrices(program).values():
        for linear in linears:
            weights[linear.in_features] += linear.nbytes
    inputs = weights.most_common(1)[0][0]
    return outputs, min(most, -(-inputs // INPUTS_MULTIPLE) * INPUTS_MULTIPLE)


def attention_rate(program: Program, state_dtype: str, limits: Limits) -> AttentionRate:
    """The rate of a program's attention over state of one type."""
    return _attention_rate(program, state_dtype, Probes(limits, arithmetic_of(program)))


def arithmetic_of(program: Program) -> _cpu.Rate:
    """The arithmetic whose rate stands for the speed of the cores: that of most of the weights."""
    linears = [linear for each in matrices(program).values() for linear in each]
    weights: Counter[_cpu.Rate] = Counter()
    for linear in linears:
        weights[rate_of(linear)] += linear.nbytes
    return weights.most_common(1)[0][0]


# -- products ----------------------------------------------------------------------------------


def _kinds(program: Program) -> dict[str, Linear]:
    """A matrix of each kind that the program multiplies with: the smallest."""
    found: dict[str, Linear] = {}
    for linears in matrices(program).values():
        for linear in linears:
            name = kernel_of(linear)
            if name not in found or linear.nbytes < found[name].nbytes:
                found[name] = linear
    return found


def _packed(name: str, shape: tuple[int, int]) -> Linear:
    outputs, inputs = shape
    values = np.random.default_rng(0).standard_normal((outputs, inputs), np.float32) * 0.02
    weight_format: Format = make("format", name)
    return weight_format.pack(outputs, inputs, [values])


def _product_rate(
    of_model: Linear, shape: tuple[int, int], probes: Probes, loop_s: float
) -> ProductRate:
    name = kernel_of(of_model)
    try:
        linear = _packed(name, shape)
    except (ConfigError, ModelError):  # a format that only holds what a checkpoint has packed
        linear = of_model
    weights = linear.out_features * linear.in_features
    matrix = native_matrix(linear)
    product = partial(core.time_products, probes.pool, probes.isa, [matrix])
    compute_s = {rows: probes.seconds(partial(product, rows)) - loop_s for rows in PROBE_ROWS}
    cold = cold_matrices([linear], probes.limits)
    stream = probes.stream(partial(cold.times, 1), linear.nbytes)
    exposed = []
    for rows in BALANCED_ROWS:
        for both_s, read_rate in probes.beside_reading(partial(cold.times, rows)):
            read_s = linear.nbytes / (read_rate * stream)
            longer, shorter = max(compute_s[rows], read_s), min(compute_s[rows], read_s)
            balance = shorter / longer
            exposed.append((balance, (both_s - longer) / (shorter * balance)))
    best = sorted(exposed)[-BURSTS:]  # where the two are nearest to balance
    norm_s = probes.seconds(partial(core.time_norm, probes.pool, probes.isa, matrix, VALUE_ROWS))
    return ProductRate(
        rows=PROBE_ROWS,
        weight_s=tuple(seconds / weights for seconds in compute_s.values()),
        stream=stream,
        exposed=min(1.0, max(0.0, median(share for _, share in best))),
        value_s=norm_s / (VALUE_ROWS * linear.in_features),
    )


def _loop_seconds(probes: Probes) -> float:
    """What a product of so few weights takes that its arithmetic is nothing beside it."""
    matrix = native_matrix(_packed("int8", SMALL_SHAPE))
    return probes.seconds(partial(core.time_products, probes.pool, probes.isa, [matrix], 1))


# -- what stands between products ----------------------------------------------------------------


def _attention_rate(program: Program, state_dtype: str, probes: Probes) -> AttentionRate:
    """From one row that sees many keys, and from many rows that share the keys they load."""
    op = next(op for op in program.ops if isinstance(op, Attend))
    shape = (op.heads, op.kv_heads, op.head_dim, op.scale, op.softcap, None)
    # Between two steps, what others read goes through the caches nearest to the core.
    near = attention_case(
        shape, state_dtype, probes.limits, 1, 1, KEYS, spread_bytes=_cache_bytes() // 4
    )
    far = attention_case(shape, state_dtype, probes.limits, 1, 1, KEYS)
    many = attention_case(shape, state_dtype, probes.limits, 1, PROMPT_ROWS, KEYS)
    assert near is not None, "one sequence of some keys fits into memory"
    assert far is not None, "so do copies of it"
    assert many is not None, "one sequence of some keys fits into memory"
    one_s, many_s = probes.seconds(near.run), probes.seconds(many.run)
    first = KEYS - PROMPT_ROWS + 1
    pairs = keys_seen(first, PROMPT_ROWS, None) + keys_to_block_ends(first, PROMPT_ROWS)
    # one_s = KEYS * (cell_s + key_s) and many_s = KEYS * cell_s + pairs * key_s.
    key_s = (many_s - one_s) / (pairs - KEYS)
    few = attention_case(shape, state_dtype, probes.limits, 1, 1, FEW_KEYS)
    assert few is not None, "so do few keys"
    cell_s = max(0.0, one_s / KEYS - key_s)
    return AttentionRate(
        cell_s=cell_s,
        key_s=key_s,
        stream=probes.stream(far.run, far.bytes),
        run_s=max(0.0, probes.seconds(few.run) - FEW_KEYS * (cell_s + key_s)),
    )


def _gate_value_seconds(program: Program, probes: Probes) -> float:
    layer = next((op for op in program.ops if isinstance(op, FeedForward)), None)
    name = kernel_of(layer.down) if layer is not None else plain_format("bfloat16").name
    try:
        down = native_matrix(_packed(name, PROBE_SHAPE))
    except (ConfigError, ModelError):
        assert layer is not None, "a model without such a layer has a format of its own"
        down = native_matrix(layer.down)
    silu = layer is None or layer.activation == "silu"
    seconds = probes.seconds(
        partial(core.time_gate, probes.pool, probes.isa, down, silu, VALUE_ROWS)
    )
    return seconds / (VALUE_ROWS * down.inputs)


def _rotation_value_seconds(program: Program, state_dtype: str, probes: Probes) -> float:
    kinds = (AttentionInput, LatentInput)
    op = next(op for op in program.ops if isinstance(op, kinds))
    rotary = 0 if op.rope is None else op.rope.rotary_dim
    kind = (op.heads, op.kv_heads, op.head_dim, rotary, *state_types(state_dtype), VALUE_ROWS)
    seconds = probes.seconds(partial(core.time_rotation, probes.pool, probes.isa, *kind))
    return seconds / (VALUE_ROWS * (op.heads + 2 * op.kv_heads) * op.head_dim)


def _logit_seconds(embed: Embed, probes: Probes, params: SamplingParams) -> float:
    backend = CpuBackend(probes.pool.size)
    executor = backend.bind(Program((embed,)), no_state(backend))
    logits = np.random.default_rng(0).standard_normal((2, embed.table.out_features), np.float32)
    draws = [Draw(row, params, row, 0, 7) for row in range(len(logits))]

    def run(calls: int) -> list[float]:
        found = []
        for _ in range(calls):
            start = perf_counter()
            executor.sample(logits, draws)
            found.append(perf_counter() - start)
        return found

    return probes.seconds(run) / logits.size


# -- the engine ----------------------------------------------------------------------------------


class _Sweeping:
    """An executor that either computes nothing, or computes its step and reads as much memory as a
    step of another model reads weights. It says the same in both cases."""

    def __init__(self, executor: Executor, limits: Limits, nbytes: int) -> None:
        self._executor, self._limits = executor, limits
        self._bursts = -(-min(nbytes, COLD_BYTES // 2) // BURST_BYTES) if nbytes else 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def begin(self, step: Step) -> Run:
        return self._executor.begin(step)

    def run(self, run: Run, start: int, stop: int) -> None:
        if self._bursts:
            self._executor.run(run, start, stop)
        for _ in range(self._bursts):
            self._limits.read_burst()

    def finish(self, run: Run) -> StepOutput:
        if self._bursts:
            self._executor.finish(run)
        wants = run.step.wants_argmax
        return StepOutput(
            np.empty((0, 0), np.float32),
            argmax=[0] * len(wants),
            largest=np.zeros(len(wants), np.float32),
        )


def _bookkeeping(limits: Limits, weight_bytes: int) -> tuple[float, float]:
    """Seconds of a step outside the backend, and more for each of its sequences, where each step
    reads so many bytes of weights."""
    few, many = BOOKKEEPING
    engine = Engine(
        EngineConfig(
            model="lab",
            threads=1,
            max_num_seqs=many,
            max_model_len=BOOKKEEPING_STEPS + 16,
            kv_cache_memory_bytes=1 << 25,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            speculative_config="none",
        ),
        clock=thread_time,
    )
    engine.executor = cast("Executor", _Sweeping(engine.executor, limits, weight_bytes))
    few_s, many_s = (_outside(engine, sequences) for sequences in BOOKKEEPING)
    sequence_s = max(0.0, (many_s - few_s) / (many - few))
    return max(0.0, few_s - few * sequence_s), sequence_s


def _coldness(limits: Limits, weight_bytes: int) -> float:
    """How many times as long bookkeeping of all kinds takes, of requests that come and go, where
    each step reads so many bytes of weights as where it reads nothing."""
    settings = EngineConfig(
        model="lab", threads=1, max_num_batched_tokens=64, kv_cache_memory_bytes=1 << 26
    )
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    taken_s: list[float] = []
    for nbytes in (0, weight_bytes):
        engine = Engine(settings, clock=thread_time)
        engine.executor = cast("Executor", _Sweeping(engine.executor, limits, nbytes))
        times = []
        for number in range(REQUESTS):
            prompt = [*range(100), *range(number, number + 50)]
            name = f"probe-{number}"
            engine.add(Request(request_id=name, prompt_token_ids=prompt, params=params))
            for _ in range(3):
                times.append(_outside_step(engine))
        while engine.has_work:
            times.append(_outside_step(engine))
        engine.close()
        taken_s.append(sum(times[len(times) // 4 :]))
    return max(1.0, taken_s[1] / taken_s[0])


def _outside_step(engine: Engine) -> float:
    """The seconds that a step spends outside the backend."""
    start, inside = engine.clock(), engine.backend_s
    engine.step()
    return engine.clock() - start - (engine.backend_s - inside)


def _outside(engine: Engine, sequences: int) -> float:
    """The median seconds that a decode step of so many sequences spends outside the backend, by
    processor time: it is this thread's alone."""
    params = SamplingParams(temperature=0.0, max_tokens=BOOKKEEPING_STEPS, ignore_eos=True)
    for index in range(sequences):
        engine.add(Request(request_id=f"probe-{index}", prompt_token_ids=[5], params=params))
    times = []
    while engine.has_work:
        times.append(_outside_step(engine))
    return median(times)


def _cache_bytes() -> int:
    """Of the last level of cache; 0 if the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0
