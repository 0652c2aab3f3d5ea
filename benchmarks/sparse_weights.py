"""Products of sparse weights beside those of dense ones, at the shapes of TinyLlama-1.1B.

    python -m benchmarks.sparse_weights [--shares 0.5,0.7,0.9] [--rows 1,4,16] [--isa avx2]

Random weights of which a share is zero, in `sparse8` and `sparse16`, beside `int8` and `bf16`. Of
each matrix there are as many copies as no cache holds, multiplied one after another; formats take
turns, and the fastest quarter of the calls counts. "of reading" is the rate at which a sparse
matrix is read, as a share of that at which the machine reads memory, probed before all turns. A
layer is the sum of its four matrices."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ockham.core.registry import make
from ockham.kernels.cores import allowed_cores
from ockham.kernels.cpu_layout import PANELS, PanelsLinear, in_panels
from ockham.kernels.native import chosen_isa, core

SHAPES = {
    "qkv": (2560, 2048),
    "attention output": (2048, 2048),
    "gate and up": (11264, 2048),
    "down": (2048, 5632),
}
"""Outputs and inputs, of a layer of TinyLlama-1.1B."""

PAIRS = (("int8", "sparse8"), ("bf16", "sparse16"))
"""A dense format, and the one that does not store its zeros."""

LEAST_BYTES = 128 << 20
"""Of the copies of a matrix: more than the caches of most machines."""

QUANTILE = 0.25


@dataclass(frozen=True, slots=True)
class Timed:
    """What multiplying with one matrix took: seconds, and bytes that it read."""

    seconds: float
    nbytes: int


@dataclass(slots=True)
class Layer:
    """The sums over matrices."""

    seconds: dict[str, float] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)

    def add(self, found: Mapping[str, Timed]) -> None:
        for name, timed in found.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + timed.seconds
            self.nbytes[name] = self.nbytes.get(name, 0) + timed.nbytes


def pruned(shape: tuple[int, int], share: float, seed: int = 0) -> np.ndarray:
    """Normal weights of which a share is zero."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape, np.float32)
    weights[rng.random(shape, np.float32) < share] = 0
    return weights


def copies_of(name: str, weights: np.ndarray, least_bytes: int) -> list[PanelsLinear]:
    first = in_panels(make("format", name).pack(*weights.shape, [weights], PANELS))
    count = max(2, -(-least_bytes // first.nbytes))
    return [first, *(first.copied() for _ in range(count - 1))]


def timed(
    pool: core.ThreadPool,
    isa: core.Isa,
    matrices: Mapping[str, Sequence[PanelsLinear]],
    rows: int,
    rounds: int,
) -> dict[str, Timed]:
    """Of each format, the fastest quarter of the calls of `rounds` turns."""
    seconds: dict[str, list[float]] = {name: [] for name in matrices}
    for _ in range(rounds):
        for name, copies in matrices.items():
            native = [each.native for each in copies]
            seconds[name] += core.time_products(pool, isa, native, rows, len(native))
    return {
        name: Timed(float(np.quantile(seconds[name], QUANTILE)), copies[0].nbytes)
        for name, copies in matrices.items()
    }


def read_rate(pool: core.ThreadPool, isa: core.Isa) -> float:
    """Bytes a second at which memory is read, the best of some probes."""
    memory = np.ones(LEAST_BYTES, np.uint8)
    return max(core.read_rate(pool, isa, memory) for _ in range(20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shares", default="0.5,0.7,0.9", help="of zeros")
    parser.add_argument("--rows", default="1,4,16", help="rows of a product")
    parser.add_argument("--rounds", type=int, default=8, help="turns")
    parser.add_argument("--isa", default=None, help="avx512, avx2 or portable")
    parser.add_argument("--threads", type=int, default=allowed_cores())
    given = parser.parse_args()
    isa = chosen_isa() if given.isa is None else getattr(core.Isa, given.isa.upper())
    pool = core.ThreadPool(given.threads)
    rate = read_rate(pool, isa)
    print(f"{core.isa_name(isa)}, {given.threads} threads, memory read at {rate / 1e9:.1f} GB/s\n")
    print("| zeros | rows | matrix | dense | sparse | times as fast | bytes | of reading |")
    print("|---|---|---|---|---|---|---|---|")
    for share in map(float, given.shares.split(",")):
        for dense, sparse in PAIRS:
            layers = {int(rows): Layer() for rows in given.rows.split(",")}
            for matrix, shape in SHAPES.items():
                weights = pruned(shape, share)
                matrices = {name: copies_of(name, weights, LEAST_BYTES) for name in (dense, sparse)}
                for rows, layer in layers.items():
                    found = timed(pool, isa, matrices, rows, given.rounds)
                    layer.add(found)
                    _tell(share, rows, matrix, Layer(*_parts(found)), dense, sparse, rate)
            for rows, layer in layers.items():
                _tell(share, rows, "**a layer**", layer, dense, sparse, rate)


def _parts(found: Mapping[str, Timed]) -> tuple[dict[str, float], dict[str, int]]:
    seconds = {name: each.seconds for name, each in found.items()}
    return seconds, {name: each.nbytes for name, each in found.items()}


def _tell(
    share: float, rows: int, matrix: str, layer: Layer, dense: str, sparse: str, rate: float
) -> None:
    one, other = layer.seconds[dense], layer.seconds[sparse]
    read = layer.nbytes[sparse] / other / rate
    print(
        f"| {share:.0%} | {rows} | {matrix} | `{dense}` {one * 1e6:.0f} us | `{sparse}` "
        f"{other * 1e6:.0f} us | {one / other:.2f} | "
        f"{layer.nbytes[sparse] / layer.nbytes[dense]:.0%} | {read:.0%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
