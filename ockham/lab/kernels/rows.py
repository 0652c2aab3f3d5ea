"""What a layer does to rows beside its products: norms, activation products, rotation, sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Linear
from ockham.core.state_dtype import state_types
from ockham.core.step import Step
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.cpu_layout import native_matrix
from ockham.kernels.layout import StateSpec
from ockham.kernels.native import core
from ockham.kernels.ops import AttentionInput, Embed, FeedForward, Head, Program, Route
from ockham.kernels.sampling import Draw
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.measure import Case
from ockham.lab.kernels.products import label
from ockham.lab.kernels.steps import flat_step, no_state

NORM_OPERATIONS = 7
"""Of a value: square and sum, two products, and its rounding for a product."""

GATE_OPERATIONS = 25
"""Of a value of silu(gate) * up: e^x is a dozen fused pairs."""

Kind = tuple[int, int, int, int, str, str, int]

SAMPLERS = {
    "sampler, greedy": SamplingParams(temperature=0.0),
    "sampler, temperature 1": SamplingParams(temperature=1.0),
    "sampler, top-p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
}


def row_cases(
    program: Program, state_dtype: str, limits: Limits, rows: Sequence[int]
) -> Iterator[Case]:
    """Each distinct one at each number of rows."""
    yield from _embeddings(program, limits, rows)
    yield from _norms(program, limits, rows)
    yield from _rotations(program, state_dtype, limits, rows)
    yield from _gates(program, limits, rows)
    yield from _samplers(program, limits, rows)


def _embeddings(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    backend = CpuBackend(limits.pool.size)
    embed = program.ops[0]
    assert isinstance(embed, Embed), "a program begins with the embedding"
    executor = backend.bind(Program((embed,)), no_state(backend))
    table = embed.table
    row_bytes = table.nbytes // table.out_features + 4 * table.in_features

    def times(step: Step, calls: int) -> list[float]:
        begun = [executor.begin(step) for _ in range(calls)]
        return [_seconds(partial(executor.run, run, 0, 1)) for run in begun]

    for count in rows:
        run = partial(times, flat_step(count, table.out_features))
        yield Case("embedding", label(table), count, count * row_bytes, 0, core.Rate.FP32, run)


def _norms(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    readers: dict[str, Linear] = {}
    for op in program.ops:
        match op:
            case AttentionInput(norm=norm, qkv=linear):
                pass
            case FeedForward(norm=norm, gate_up=linear):
                pass
            case Route(norm=norm, router=linear):
                pass
            case Head(norm=norm, out=linear):
                pass
            case _:
                continue
        if norm is not None:
            readers[f"{linear.in_features} for {linear.format}"] = linear
    for shape, linear in readers.items():
        matrix = native_matrix(linear)
        for count in rows:
            values = count * linear.in_features
            operations = NORM_OPERATIONS * values
            run = partial(core.time_norm, limits.pool, limits.isa, matrix, count)
            yield Case("norm", shape, count, 4 * values, operations, core.Rate.FP32, run)


def _rotations(
    program: Program, state_dtype: str, limits: Limits, rows: Sequence[int]
) -> Iterator[Case]:
    types = state_types(state_dtype)
    kinds = {
        (op.heads, op.kv_heads, op.head_dim, 0 if op.rope is None else op.rope.rotary_dim)
        for op in program.ops
        if isinstance(op, AttentionInput)
    }
    for heads, kv_heads, head_dim, rotary in sorted(kinds):
        shape = f"{heads}+{kv_heads} of {head_dim}, {state_dtype}"
        rotated = (heads + kv_heads) * rotary
        stored = StateSpec.attention(kv_heads, head_dim, state_dtype).nbytes
        row_bytes = 4 * ((heads + 2 * kv_heads) * head_dim + rotated) + stored
        for count in rows:

            def run(
                calls: int, kind: Kind = (heads, kv_heads, head_dim, rotary, *types, count)
            ) -> list[float]:
                return core.time_rotation(limits.pool, limits.isa, *kind, calls)

            yield Case(
                "rope and cache write",
                shape,
                count,
                count * row_bytes,
                3 * count * rotated,
                core.Rate.FP32,
                run,
            )


def _gates(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    layers = [op for op in program.ops if isinstance(op, FeedForward)]
    kinds = {f"{op.activation}, {op.down.in_features} for {op.down.format}": op for op in layers}
    for shape, op in kinds.items():
        matrix, silu = native_matrix(op.down), op.activation == "silu"
        for count in rows:
            values = count * op.down.in_features
            operations = GATE_OPERATIONS * values
            run = partial(core.time_gate, limits.pool, limits.isa, matrix, silu, count)
            yield Case(
                "activation product", shape, count, 8 * values, operations, core.Rate.FP32, run
            )


def _samplers(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    embed = program.ops[0]
    assert isinstance(embed, Embed), "a program begins with the embedding"
    vocabulary = embed.table.out_features
    backend = CpuBackend(limits.pool.size)
    executor = backend.bind(Program((embed,)), no_state(backend))
    random = np.random.default_rng(0)

    def times(logits: Floats, draws: list[Draw], calls: int) -> list[float]:
        return [_seconds(partial(executor.sample, logits, draws)) for _ in range(calls)]

    for count in rows:
        logits = random.standard_normal((count, vocabulary), np.float32) * 3
        values = count * vocabulary
        for kernel, params in SAMPLERS.items():
            draws = [Draw(row, params, row, 0, 7) for row in range(count)]
            run = partial(times, logits, draws)
            yield Case(kernel, str(vocabulary), count, 4 * values, values, core.Rate.FP32, run)


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
