"""Attention and a whole layer of a 1.1B Llama, as fractions of what the machine can do.

    python benchmarks/attention.py [--threads 2] [--quantile 0.5] [--json attention.json]

A decode must read its keys and values, a prefill must do its products; the rates of reading memory
and of fp32 fma on registers are sampled in turns with them, because machines drift. A decode does 4
operations an element for each query head that shares it, so with many query heads to a key-value
head it, too, is bound by arithmetic: `limit` is the larger of the two over the time taken. Of each
the `--quantile` fastest sample counts: 0.5 on a quiet machine, 0.1 on a crowded one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ockham.core.step import Step, Tables
from ockham.kernels.base import GroupLayout
from ockham.kernels.cores import allowed_cores
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.memory import allocate
from ockham.kernels.native import core
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    FeedForward,
    Norm,
    Op,
    Program,
    Rope,
)
from ockham.weights.int4 import Int4

CONTEXTS = (512, 2048, 8192)
PROMPTS = (512, 2048)
HEADS = {"32 over 4 of 64": (32, 4, 64), "32 over 8 of 128": (32, 8, 128)}
PAGE_TOKENS = 16
COLD_BYTES = 128 << 20
"""Keys and values that are read before any is read again: more than the caches hold."""


@dataclass(frozen=True)
class Measured:
    """One attention: what it took, what it had to do, what the machine could do at that moment."""

    what: str
    heads: str
    state: str
    keys: int
    time_s: float
    bytes: int
    operations: int
    read_bytes_per_s: float
    operations_per_s: float
    limit: float
    """The least possible time over the time taken."""


class Machine:
    """Its limits, sampled whenever asked."""

    def __init__(self, threads: int) -> None:
        self.backend = CpuBackend(threads)
        self.pool, self.isa = core.ThreadPool(threads), core.chosen()
        self._memory = allocate(COLD_BYTES)
        self._memory[:] = 1

    def reading(self) -> float:
        return core.read_rate(self.pool, self.isa, self._memory)

    def arithmetic(self) -> float:
        return core.arithmetic_rate(self.pool, self.isa, core.Rate.FP32, 0.005)


def step_of(rows: int, first: int, pages: int) -> Step:
    """Rows [first, first + rows) of one sequence over shuffled pages."""
    cells = np.arange(first, first + rows, dtype=np.int32)
    order = np.random.default_rng(0).permutation(pages).astype(np.int32)
    table = Tables(order, np.array([0, pages], np.int32))
    owner = np.zeros(rows, np.int32)
    return Step(
        ids=np.zeros(rows, np.int32),
        positions=cells,
        sequence=owner,
        cells=cells,
        context=cells + 1,
        tables=(table,),
        slots=(table.slots(owner, cells, PAGE_TOKENS),),
        page_tokens=PAGE_TOKENS,
        wants_logits=np.empty(0, np.int32),
        adapters=np.full(rows, -1, np.int32),
        seeds=np.zeros(rows, np.uint64),
        streams=np.zeros(rows, np.uint32),
        keep=np.ones(rows, np.bool_),
    )


def random_int4(outputs: int, inputs: int) -> object:
    rows = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32) * 0.02
    return Int4(64).pack(outputs, inputs, [rows])


def attention_program(layers: int, heads: int, kv_heads: int, head_dim: int) -> Program:
    """Layers of nothing but attention, on a narrow residual stream."""
    hidden = 64
    qkv = random_int4((heads + 2 * kv_heads) * head_dim, hidden)
    operations: list[Op] = [Embed(random_int4(16, hidden))]  # type: ignore[arg-type]
    for layer in range(layers):
        shape = (layer, 0, heads, kv_heads, head_dim)
        operations.append(AttentionInput(*shape, qkv=qkv))  # type: ignore[arg-type]
        operations.append(Attend(*shape, scale=head_dim**-0.5))
    return Program(tuple(operations))


def measure(
    machine: Machine, name: str, state: str, rows: int, keys: int, quantile: float
) -> Measured:
    heads, kv_heads, head_dim = HEADS[name]
    element_bytes = 2 if state == "bfloat16" else 4
    layer_bytes = 2 * keys * kv_heads * head_dim * element_bytes
    layers = 1 if rows > 1 else max(2, -(-COLD_BYTES // layer_bytes))
    pages = -(-keys // PAGE_TOKENS)
    layout = GroupLayout(tuple(range(layers)), kv_heads, head_dim, state, None, pages, PAGE_TOKENS)
    planes = machine.backend.allocate([layout])
    program = attention_program(layers, heads, kv_heads, head_dim)
    executor = machine.backend.bind(program, planes)
    slots = np.arange(PAGE_TOKENS)
    numbers = np.random.default_rng(1).standard_normal((layers, 2, PAGE_TOKENS, kv_heads, head_dim))
    bits = numbers.astype(np.float32)
    stored = (bits.view(np.uint32) >> 16).astype(np.uint16) if element_bytes == 2 else bits
    for page in range(pages):
        planes.write(0, slots + page * PAGE_TOKENS, stored)
    step = step_of(rows, keys - rows, pages)
    times, readings, rates = [], [], []
    run = executor.begin(step)
    executor.run(run, 0, 2)
    for _ in range(3 if rows > 1 else 2):
        for layer in range(layers):
            start = time.perf_counter()
            executor.run(run, 2 + 2 * layer, 3 + 2 * layer)
            times.append(time.perf_counter() - start)
        readings.append(machine.reading())
        rates.append(machine.arithmetic())
    took = float(np.quantile(times, quantile))
    reading = float(np.quantile(readings, 1 - quantile))
    arithmetic = float(np.quantile(rates, 1 - quantile))
    seen = rows * keys - rows * (rows - 1) // 2
    operations = 4 * heads * head_dim * seen
    least = max(layer_bytes / reading, operations / arithmetic)
    what = "decode" if rows == 1 else "prefill"
    return Measured(
        what, name, state, keys, took, layer_bytes, operations, reading, arithmetic, least / took
    )


def layer_times(machine: Machine, keys: int, quantile: float) -> dict[str, float]:
    """Seconds of each operation of one decode row through int4 layers of a 1.1B Llama."""
    layers, hidden, inner, heads, kv_heads, head_dim = 8, 2048, 5632, 32, 4, 64
    rope = Rope((1.0 / 10000.0 ** (np.arange(0, 64, 2) / 64)).astype(np.float32))
    norm = Norm(np.ones(hidden, np.float32), 1e-5)
    operations: list[Op] = [Embed(random_int4(16, hidden))]  # type: ignore[arg-type]
    for layer in range(layers):
        shape = (layer, 0, heads, kv_heads, head_dim)
        qkv = random_int4((heads + 2 * kv_heads) * head_dim, hidden)
        operations += [
            AttentionInput(*shape, qkv=qkv, norm=norm, rope=rope),  # type: ignore[arg-type]
            Attend(*shape, scale=0.125),
            AttentionOutput(layer, random_int4(hidden, heads * head_dim)),  # type: ignore[arg-type]
            FeedForward(
                layer,
                random_int4(2 * inner, hidden),  # type: ignore[arg-type]
                random_int4(hidden, inner),  # type: ignore[arg-type]
                norm=norm,
            ),
        ]
    pages = -(-keys // PAGE_TOKENS)
    layout = GroupLayout(
        tuple(range(layers)), kv_heads, head_dim, "bfloat16", None, pages, PAGE_TOKENS
    )
    planes = machine.backend.allocate([layout])
    executor = machine.backend.bind(Program(tuple(operations)), planes)
    step = step_of(1, keys - 1, pages)
    samples: dict[str, list[float]] = {}
    for _ in range(20):
        run = executor.begin(step)
        executor.run(run, 0, 1)
        for place, op in enumerate(operations[1:], 1):
            start = time.perf_counter()
            executor.run(run, place, place + 1)
            samples.setdefault(type(op).__name__, []).append(time.perf_counter() - start)
    return {name: float(np.quantile(times, quantile)) for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=allowed_cores())
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = Machine(options.threads)
    found = []
    print("what     heads             state     keys     ms      GB/s    GFLOP/s  of the limit")
    for name in HEADS:
        for state in ("bfloat16", "float32"):
            for rows, keys in [(1, n) for n in CONTEXTS] + [(n, n) for n in PROMPTS]:
                one = measure(machine, name, state, rows, keys, options.quantile)
                found.append(one)
                print(
                    f"{one.what:8} {one.heads:17} {one.state:9} {one.keys:5} "
                    f"{one.time_s * 1e3:8.3f} {one.bytes / one.time_s / 1e9:7.1f} "
                    f"{one.operations / one.time_s / 1e9:9.0f} {one.limit:9.2f}"
                )
    layer = layer_times(machine, 512, options.quantile)
    print(
        "a decode row of an int4 layer of 1.1B, 512 keys: "
        + ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in layer.items())
    )
    if options.json:
        results = {"attention": [asdict(one) for one in found], "layer_s": layer}
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
