"""Every format's product at the shapes of a 1.1B Llama, as a fraction of what the machine can do.

    python benchmarks/kernels.py [--threads 2] [--formats int4-32,int8] [--json kernels.json]

The limits are sampled beside each measurement, because machines drift: the rate of reading memory
that no cache holds, and the rate of the format's instructions on registers. A product can take no
less than the larger of bytes / reading rate and operations / arithmetic rate; the last column is
that over the time taken. All are sampled in short bursts, in turns, and of each the `--quantile`
fastest is taken: 0.5, the median, on a quiet machine; 0.1 or less where other programs take the
cores away most of the time. Weights are copied until no cache holds them, and read in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ockham.core.seams import Linear
from ockham.kernels.cores import allowed_cores
from ockham.kernels.cpu_linear import native_matrix
from ockham.kernels.memory import allocate
from ockham.kernels.native import core
from ockham.weights.bf16 import Bf16
from ockham.weights.fp32 import Fp32
from ockham.weights.int4 import Int4
from ockham.weights.int8 import Int8

SHAPES = {
    "qkv": (2560, 2048),
    "out": (2048, 2048),
    "gate_up": (11264, 2048),
    "down": (2048, 5632),
    "head": (32000, 2048),
}
FORMATS = {
    "fp32": Fp32(),
    "bf16": Bf16(),
    "int8": Int8(),
    "int4-32": Int4(32),
    "int4-64": Int4(64),
    "int4-128": Int4(128),
}
ROWS = (1, 2, 4, 8, 16, 64, 512)

BURST_BYTES = 16 << 20

COLD_BYTES = 192 << 20
"""Weights that are read before any is read again: more than the caches hold."""


@dataclass(frozen=True)
class Measured:
    """One product: what it took, what it moved, what the machine could do at that moment."""

    format: str
    shape: str
    outputs: int
    inputs: int
    rows: int
    threads: int
    time_s: float
    weight_bytes: int
    operations: int
    read_bytes_per_s: float
    operations_per_s: float
    limit: float
    """The least possible time over the time taken."""


class Machine:
    """Its limits, sampled whenever asked."""

    def __init__(self, threads: int, isa: core.Isa) -> None:
        self.pool, self.isa = core.ThreadPool(threads), isa
        self._memory = allocate(COLD_BYTES)
        self._memory[:] = 1
        self._next = 0

    def read_rates(self) -> list[float]:
        """Of some bursts, each over memory that was not read for long."""
        rates = []
        for _ in range(3):
            part = self._memory[self._next : self._next + BURST_BYTES]
            self._next = (self._next + BURST_BYTES) % COLD_BYTES
            rates.append(core.read_rate(self.pool, self.isa, part))
        return rates

    def arithmetic_rates(self, name: str) -> list[float]:
        rate = {"fp32": core.Rate.FP32, "bf16": core.Rate.BF16}.get(name, core.Rate.INT8)
        return [core.arithmetic_rate(self.pool, self.isa, rate, 0.0005) for _ in range(3)]


def packed(name: str, outputs: int, inputs: int) -> Linear:
    """A matrix of random weights."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((outputs, inputs), np.float32)
    return FORMATS[name].pack(outputs, inputs, iter([weight]))


def copies(matrix: Linear, machine: Machine) -> Iterator[core.Matrix]:
    """The matrix as often as it takes to fill COLD_BYTES."""
    first = native_matrix(matrix, machine.pool)
    yield first
    for _ in range(COLD_BYTES // first.nbytes):
        parts = {}
        for name, array in matrix.arrays.items():
            parts[name] = allocate(array.nbytes)
            parts[name][:] = array.reshape(-1).view(np.uint8)
        group = (
            matrix.in_features // matrix.arrays["scale"].shape[1] if "int4" in matrix.format else 0
        )
        yield core.matrix(
            first.kind,
            first.outputs,
            first.inputs,
            parts["weight"],
            group=group,
            scale=parts.get("scale"),
        )


def measure(
    machine: Machine, name: str, shape: str, rows: list[int], rounds: int, quantile: float
) -> Iterator[Measured]:
    outputs, inputs = SHAPES[shape]
    matrices = list(copies(packed(name, outputs, inputs), machine))
    nbytes = matrices[0].nbytes
    for count in rows:
        operations = 2 * count * outputs * inputs
        times: list[float] = []
        reads: list[float] = []
        rates: list[float] = []
        for _ in range(rounds):
            reads += machine.read_rates()
            rates += machine.arithmetic_rates(name)
            repeats = max(3, min(len(matrices), int(2e10 / operations)))
            times += core.time_products(machine.pool, machine.isa, matrices, count, repeats)
        time_s = float(np.quantile(times, quantile))
        read, rate = (
            float(np.quantile(reads, 1 - quantile)),
            float(np.quantile(rates, 1 - quantile)),
        )
        yield Measured(
            name,
            shape,
            outputs,
            inputs,
            count,
            machine.pool.size,
            time_s,
            nbytes,
            operations,
            read,
            rate,
            max(nbytes / read, operations / rate) / time_s,
        )


def line(each: Measured) -> str:
    return (
        f"{each.format:9} {each.shape:8} {each.rows:4} {each.time_s * 1e6:9.1f} us "
        f"{each.weight_bytes / each.time_s / 1e9:7.1f} of {each.read_bytes_per_s / 1e9:5.1f} GB/s "
        f"{each.operations / each.time_s / 1e9:8.0f} of {each.operations_per_s / 1e9:5.0f} GOP/s "
        f"{each.limit:6.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=allowed_cores())
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = Machine(options.threads, core.chosen())
    print(
        f"{core.isa_name(machine.isa)}, {options.threads} threads, "
        f"{time.strftime('%Y-%m-%d %H:%M')}"
    )
    rows = [int(count) for count in options.rows.split(",")]
    results = []
    for name in options.formats.split(","):
        for shape in options.shapes.split(","):
            for each in measure(machine, name, shape, rows, options.rounds, options.quantile):
                results.append(each)
                print(line(each), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
