"""What a model of thin matrices loses, beside rounding to as many bytes.

Plain low rank (Greenformers, paper 16, arXiv:2102.09100) replaces W (N, K) by U V of rank r. This
command says how much of a matrix's products such a U V loses, for the r whose factors take as many
bytes in int8 as W does in a format, and what that format loses:

    python -m benchmarks.low_rank lab
    python -m benchmarks.low_rank smollm2

The loss of a matrix is the norm of what its products lack over the norm of the products, root mean
square over the rows of a text (Python's own documentation and sources). U V is the best there is
for that text (`ockham.weights.leading`), in floats; that its factors are rounded is left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.registry import make
from ockham.core.seams import Format
from ockham.kernels.layouts import ROWS
from ockham.lab.evidence.transforms import calibration_text, token_ids
from ockham.model.calibration import Layers, ObservedWeights
from ockham.model.checkpoint.opening import open_model
from ockham.model.hub import resolve
from ockham.model.program.compile import compile_program
from ockham.model.rewriting.reading import plain_packer
from ockham.model.windows import cut
from ockham.weights.leading import leading_directions

FORMATS = {"int8": 8.25, "int4:64": 4.25}
"""Bits of a weight."""
ROLES = ("qkv", "attention_output", "gate_up", "down")
FACTOR_BITS = 8
WINDOW_TOKENS, WINDOWS = 256, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    given = parser.parse_args()
    path = resolve(given.model)
    opened = open_model(path)
    weights = ObservedWeights(opened.source.load(plain_packer()))
    longest = opened.description.max_position_embeddings
    program = compile_program(opened.description, weights, longest)
    ids = token_ids(EngineConfig(model=given.model))(Path(path), calibration_text())
    layers = Layers(program, opened.description, cut(ids, WINDOW_TOKENS, WINDOWS))
    lost: dict[tuple[str, str], list[tuple[int, float, float]]] = defaultdict(list)
    for _, start, stop in layers.ranges():
        layers.run(start, stop)
        for matrix in weights.matrices:
            if matrix.moments is not None and matrix.role in ROLES:
                rows = matrix.rows(np.arange(matrix.out_features, dtype=np.int32))
                for name in FORMATS:
                    found = losses(rows, matrix.moments, name)
                    lost[matrix.role, name].append(found)
            matrix.moments = None
    print("| matrices | format | its loss | rank of as many bytes | loss of U V |")
    print("|---|---|---|---|---|")
    for (role, name), each in lost.items():
        rank, rounded, thin = (float(np.mean(values)) for values in zip(*each, strict=True))
        print(f"| {role} | {name} | {rounded:.2%} | {rank:.0f} | {thin:.1%} |")


def losses(rows: Floats, moments: Floats, name: str) -> tuple[int, float, float]:
    """The rank, what the format loses, and what U V of that rank does."""
    outputs, inputs = rows.shape
    weight_format: Format = make("format", name)
    packed = weight_format.pack(outputs, inputs, [rows], ROWS)
    error = rows - packed.rows(np.arange(outputs, dtype=np.int32))
    rank = max(1, int(FORMATS[name] * outputs * inputs / (FACTOR_BITS * (outputs + inputs))))
    u = leading_directions(rows, moments, rank)
    whole = _norm(rows, moments)
    return rank, _norm(error, moments) / whole, _norm(rows - u @ (u.T @ rows), moments) / whole


def _norm(matrix: Floats, moments: Floats) -> float:
    """The norm of the products with inputs of such moments."""
    return float(np.sqrt(max(0.0, np.einsum("nk,nk->", matrix @ moments, matrix))))


if __name__ == "__main__":
    main()
