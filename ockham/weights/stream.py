"""What transforms do to the residual stream of a model: norms without scales, and another basis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.core.arrays import Doubles, Floats
from ockham.core.seams import Block, Rewritable


def absorb_scales(model: Rewritable) -> None:
    """Move the scales of all norms on the stream into the matrices behind them, so that the norms
    only divide by the root mean square, and commute with rotations (Ashkboos et al. 2024,
    arXiv:2401.15024, section 3). The head gets a matrix of its own, if a scale would change the
    table."""
    for block in model.blocks:
        scale_columns(model, block.norm, block.reads, model.get(block.norm))
    scales = model.get(model.final_norm)
    if not (scales == 1).all():
        model.untie()
        scale_columns(model, model.final_norm, (model.head,), scales)


def scale_columns(model: Rewritable, norm: str, reads: Sequence[str], scales: Floats) -> None:
    """Multiply the inputs of matrices by `scales` (D,), and divide the norm's weights by them."""
    for name in reads:
        model.put(name, model.get(name) * scales)
    model.put(norm, model.get(norm) / scales)


def turn_reads(model: Rewritable, names: Sequence[str], basis: Doubles) -> None:
    """W (N, D) becomes W Q of a basis Q (D, D'): what reads the stream x reads x Q."""
    for name in names:
        model.put(name, (model.get(name).astype(np.float64) @ basis).astype(np.float32))


def turn_writes(model: Rewritable, block: Block, basis: Doubles) -> None:
    """W (D, K) becomes Q^T W, and its bias b Q: what is added to x is added to x Q."""
    for name in block.writes:
        model.put(name, (basis.T @ model.get(name).astype(np.float64)).astype(np.float32))
    for name in block.write_biases:
        model.put(name, (model.get(name).astype(np.float64) @ basis).astype(np.float32))


def random_rotation(width: int, rng: np.random.Generator) -> Doubles:
    """An orthogonal matrix drawn evenly from all (Mezzadri 2007, arXiv:math-ph/0609050)."""
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    turned: Doubles = q * np.sign(np.diag(r))
    return turned


def hadamard_rotation(width: int, rng: np.random.Generator) -> Doubles:
    """A Hadamard matrix with random signs: of the largest power of two that divides the width,
    times a random rotation of the rest (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, section 3;
    there the rest is another Hadamard matrix, of the sizes for which one is known)."""
    power = width & -width
    matrix = np.ones((1, 1))
    while len(matrix) < power:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rest = random_rotation(width // power, rng) if power < width else np.ones((1, 1))
    mixed: Doubles = np.kron(rest, matrix / np.sqrt(power))
    return rng.choice((-1.0, 1.0), width)[:, None] * mixed
