"""Evidence for GGUF's block types: one product beside the same values widened to fp32.

Nobody quantises to these types here, so a model of one's own cannot be compared in them; a product
of a matrix of a real size can, with the codes drawn at random.
"""

from __future__ import annotations

from statistics import median

import numpy as np

from ockham.core.quantised import BlockRows
from ockham.core.registry import techniques
from ockham.kernels.cores import allowed_cores
from ockham.kernels.cpu_layout import in_panels
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.recipe import OF_NO_MODEL, Measure, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.products import cold_matrices
from ockham.lab.statistics import paired_ratio
from ockham.weights.block_format import BlockFormat
from ockham.weights.block_shape import BlockShape
from ockham.weights.fp32 import Fp32

OUTPUTS, INPUTS = 2048, 2048
CALLS = 32
GGML = (
    "ggml's block types (llama.cpp): weights of 2 to 9 bits multiplied with inputs in 8 bits; no "
    "figure is claimed for one product"
)

CLAIMS = {
    "tq2_0": "LUT Tensor Core (arXiv:2408.06003): weights of 1 to 4 bits multiplied by looking up "
    "sums of inputs, over ten times as dense as multipliers, in hardware of its own; MatMul-free "
    "LM (arXiv:2406.02528): ternary weights need additions only. Here codes 0 to 2 go through the "
    "products of bytes that other formats have, and the inputs' sum is taken off",
}


def random_rows(shape: BlockShape, outputs: int, inputs: int, seed: int) -> BlockRows:
    """Rows with random codes, and scales that give weights of about a hundredth."""
    rng = np.random.default_rng(seed)
    blocks = inputs // shape.inputs
    factors = (outputs, inputs // shape.group) if shape.group else (0, 0)
    lowest = -32 if shape.signed else 1
    most = max(map(abs, shape.levels)) / (1 << shape.halvings) if shape.levels else 1 << shape.bits
    size = 0.02 / most / (16 if shape.group else 1)

    def halves() -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
        return rng.uniform(size / 2, size, (outputs, blocks)).astype(np.float16)

    bytes_of = {
        "exponent": int(np.log2(size)) + 128 - rng.integers(0, 3, (outputs, blocks)),
        "small": rng.integers(0x68, 0x78, (outputs, blocks)),  # 64 to 240
    }
    return BlockRows(
        codes=rng.integers(0, shape.codes, (outputs, inputs)).astype(np.uint8),
        scales=bytes_of[shape.scale].astype(np.uint8) if shape.scale in bytes_of else halves(),
        minima=halves() if shape.minima else None,
        group_scales=rng.integers(lowest, 32, factors).astype(np.int8 if shape.signed else np.uint8)
        if shape.group
        else None,
        group_minima=rng.integers(0, 32, factors).astype(np.uint8)
        if shape.group and shape.minima
        else None,
        divisors=np.full((outputs, 1), 0.5 * 2**8 / size, np.float32) if shape.divisors else None,
    )


def _measure(name: str, cls: type[BlockFormat]) -> Measure:
    def measure(bench: Bench) -> Row:
        rows = random_rows(cls.shape, OUTPUTS, INPUTS, bench.seed)
        plain = cls().adopt(OUTPUTS, INPUTS, [rows])
        held = in_panels(plain)
        values = plain.rows(np.arange(OUTPUTS, dtype=np.int32))
        widened = in_panels(Fp32().pack(OUTPUTS, INPUTS, [values]))
        x = np.random.default_rng(bench.seed).standard_normal((4, INPUTS)).astype(np.float32)
        right = x.astype(np.float64) @ values.astype(np.float64).T
        error = float(np.linalg.norm(plain.matmul(x) - right) / np.linalg.norm(right))
        limits = Limits(allowed_cores())
        sides = [cold_matrices([linear], limits) for linear in (widened, held)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(bench.rounds):
            for side, times in zip(sides, seconds, strict=True):
                times.append(median(side.times(1, CALLS)))
        speed, interval = paired_ratio(*seconds)
        return Row(
            seam="format",
            name=name,
            exact=False,
            what=f"one row times a matrix of {OUTPUTS} x {INPUTS} that no cache holds; against the "
            "same values widened to fp32",
            unit="bytes of weights read",
            without=widened.nbytes,
            with_=held.nbytes,
            speed=speed,
            speed_interval=interval,
            rounds=bench.rounds,
            error=error,
            claim=CLAIMS.get(name, GGML),
        )

    return measure


for _technique in techniques("format"):
    if issubclass(_technique.cls, BlockFormat):
        evidence("format", _technique.name, only_lab=OF_NO_MODEL)(
            _measure(_technique.name, _technique.cls)
        )
