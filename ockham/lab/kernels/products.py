"""The products of a program, each distinct one, with weights that no cache holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ockham.core.registry import find
from ockham.core.seams import Format, Linear
from ockham.kernels.cpu_layout import in_panels, native_matrix
from ockham.kernels.native import core
from ockham.kernels.ops import Program, kernel_of
from ockham.lab.kernels.limits import COLD_BYTES, Limits
from ockham.lab.kernels.measure import Case
from ockham.weights.stacked import parts_of

if TYPE_CHECKING:
    from ockham.kernels import _cpu

MOST_COPIES = 2048
"""Of a small matrix no more are made, even if caches hold them all."""


def label(linear: Linear) -> str:
    """Kernel and shape: "NAME:64 (2560, 2048)" of a format with groups of 64."""
    return f"{kernel_of(linear)} ({linear.out_features}, {linear.in_features})"


def rate_of(linear: Linear) -> _cpu.Rate:
    """The arithmetic that a format's products can use."""
    weight_format: type[Format] = find("format", linear.format).cls
    return core.Rate.__members__[weight_format.arithmetic.upper()]


def matrices(program: Program) -> dict[tuple[str, str], list[Linear]]:
    """The program's matrices by kind, format and shape: one list for each distinct product."""
    found: dict[tuple[str, str], list[Linear]] = {}
    for role, linear in program.matrices().items():
        if role != "embedding":  # read by rows, never multiplied with
            for part in parts_of(linear):
                found.setdefault((_kind(role), label(part)), []).append(part)
    return found


def _kind(role: str) -> str:
    """A role without its layer and expert: "gate and up", "experts down"."""
    words = [word for word in role.split(".") if word != "layer" and not word.isdigit()]
    return " ".join(words).replace("gate_up", "gate and up")


def product_cases(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    """Each distinct product at each number of rows; the input's preparation is timed elsewhere."""
    for (role, shape), linears in matrices(program).items():
        cold = cold_matrices(linears, limits)
        linear = linears[0]
        for count in rows:
            activations = 4 * count * (linear.in_features + linear.out_features)
            yield Case(
                role,
                shape,
                count,
                cold.matrices[0].nbytes + activations,
                2 * count * linear.in_features * linear.out_features,
                rate_of(linear),
                partial(cold.times, count),
            )


class ColdMatrices:
    """Equal matrices taken in turn."""

    def __init__(self, matrices: list[_cpu.Matrix], limits: Limits) -> None:
        self.matrices = matrices
        self._limits = limits

    def times(self, rows: int, calls: int) -> list[float]:
        limits, count = self._limits, min(calls, len(self.matrices))
        taken, left = self.matrices[:count], self.matrices[count:]
        self.matrices = left + taken
        return core.time_products(limits.pool, limits.isa, taken, rows, calls)


def cold_matrices(linears: Sequence[Linear], limits: Limits) -> ColdMatrices:
    """Views of some of the matrices, and copies where they are fewer than the caches hold."""
    found: list[_cpu.Matrix] = []
    for linear in linears:
        found.append(native_matrix(linear))
        if len(found) * linear.nbytes > COLD_BYTES:
            return ColdMatrices(found, limits)
    first = in_panels(linears[0])
    while len(found) * first.nbytes <= COLD_BYTES and len(found) < MOST_COPIES:
        found.append(first.copied().native)
    return ColdMatrices(found, limits)
