"""Products of integers by planes of bits of +-1 (Bipolar-INT, arXiv:2409.17870), beside 8-bit ones.

    python -m benchmarks.bit_planes

Each pair of widths is checked for equality with the integer product, then timed on one core with
AVX2, data in the first-level cache: K = 2,048, the best of 200 times 200 products. Needs g++ and a
processor with AVX2."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from random import Random

SOURCE = Path(__file__).with_suffix(".cpp")
INPUTS = 2048
WIDTHS = ((1, 1), (2, 2), (1, 4), (4, 4), (1, 8), (2, 8), (4, 8))
"""Bits of weights and of inputs."""


def built(directory: Path) -> Path:
    """The program that multiplies and times."""
    program = directory / "bit_planes"
    command = ["g++", "-O3", "-std=c++17", "-mavx2", str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def product(
    program: Path, weights: list[int], inputs: list[int], bits: tuple[int, int]
) -> tuple[int, float, float]:
    """The product by planes of odd numbers of so many bits; the seconds of it, and of one of as
    many 8-bit inputs with codes of at most 4 bits."""
    told = f"{len(weights)} {bits[0]} {bits[1]}\n{' '.join(map(str, weights + inputs))}"
    run = subprocess.run([program], input=told, capture_output=True, text=True, check=True)
    total, planes, plain = run.stdout.split()
    return int(total), float(planes), float(plain)


def bipolar(rng: Random, count: int, bits: int) -> list[int]:
    """Random odd numbers of so many bits: sums of +-2^i."""
    return [rng.randrange(1 - (1 << bits), 1 << bits, 2) for _ in range(count)]


def main() -> None:
    rng = Random(0)
    with tempfile.TemporaryDirectory(prefix="ockham-planes-") as directory:
        program = built(Path(directory))
        print("| weights, inputs: bits | equal | time by planes / time of 8-bit inputs |")
        print("|---|---|---|")
        for bits in WIDTHS:
            weights, inputs = (bipolar(rng, INPUTS, each) for each in bits)
            total, planes, plain = product(program, weights, inputs, bits)
            equal = total == sum(w * x for w, x in zip(weights, inputs, strict=True))
            print(f"| {bits[0]}, {bits[1]} | {'yes' if equal else 'NO'} | {planes / plain:.2f} |")


if __name__ == "__main__":
    main()
