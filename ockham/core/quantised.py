"""Weights that a checkpoint stores quantised: w = (code - zero) * scale, by groups of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a checkpoint quantised one matrix: what a format must know to say whether it holds it.

    `bits` are those of a code. `group` consecutive inputs share a scale; it divides the inputs.
    `half_scales` says that fp16 holds every scale exactly. Without `zeros` the zero point is
    2 ** (bits - 1) everywhere.
    """

    bits: int
    group: int
    half_scales: bool
    zeros: bool

    def describe(self) -> str:
        return f"{self.bits} bits in groups of {self.group}{' with zero points' * self.zeros}"


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Consecutive rows (outputs) of a matrix with K inputs in G groups.

    `codes` uint8 (rows, K); `scales` (rows, G) float16, bfloat16 or float32; `zeros` uint8
    (rows, G).
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.generic]
    zeros: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.codes)

    def regrouped(self, group: int) -> QuantisedRows:
        """The same rows in smaller groups, of `group` inputs: the scales are repeated."""
        times = self.codes.shape[1] // group // self.scales.shape[1]
        if times == 1:
            return self
        scales, zeros = np.repeat(self.scales, times, 1), np.repeat(self.zeros, times, 1)
        return QuantisedRows(self.codes, scales, zeros)

    def fault(self, encoding: Encoding) -> str | None:
        """What is wrong with these rows, as a part of a sentence; None if nothing is.

        A scale of zero is legal where all codes of its group are the zero point: the weights are
        zero. Elsewhere it says that a quantiser lost the scale of weights that were none.
        """
        wide = self.scales.astype(np.float32)
        if not np.isfinite(wide).all():
            return "a scale is NaN or infinite"
        middle = 1 << (encoding.bits - 1)
        if not encoding.zeros and (self.zeros != middle).any():
            return (
                f"there is a zero point other than {middle}, although the checkpoint's config says "
                "that it is symmetric"
            )
        row, group = np.nonzero(wide == 0)
        codes = self.codes.reshape(*self.scales.shape, -1)[row, group]
        if (codes != self.zeros[row, group, None]).any():
            return "a scale is zero, but its weights' codes are not"
        return None

    def widened(self) -> Floats:
        """The weights in fp32 (rows, K). Raises ValueError if fp32 cannot hold one exactly.

        With 16-bit scales it always can: a scale has at most 11 significant bits, code - zero 8.
        """
        rows, groups = self.scales.shape
        steps = self.codes.reshape(rows, groups, -1).astype(np.int16) - self.zeros[:, :, None]
        scales = self.scales.astype(np.float32)[:, :, None]
        values: Floats = steps.astype(np.float32) * scales
        if self.scales.dtype.itemsize > 2:
            exact = steps.astype(np.float64) * scales
            if (values != exact).any():
                raise ValueError("fp32 cannot hold the products of codes and scales exactly")
        return values.reshape(rows, -1)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Consecutive rows (outputs) of K inputs as GGUF files hold them: B blocks a row, each with one
    or two fp16 numbers, and where blocks are cut into groups (G in a row) small factors for each.

    `codes` uint8 (rows, K), counted from the lowest; `scales` float16 (rows, B), or uint8 where
    they are exponents of two; `minima` float16 (rows, B) or None; `group_scales` uint8 or int8
    (rows, G) or None; `group_minima` uint8 (rows, G) or None. What they mean is said by the format
    of the type.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.generic]
    minima: npt.NDArray[np.float16] | None = None
    group_scales: npt.NDArray[np.generic] | None = None
    group_minima: npt.NDArray[np.uint8] | None = None
    divisors: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def fault(self) -> str | None:
        """What is wrong with these rows, as a part of a sentence; None if nothing is."""
        for values in (self.scales, self.minima, self.divisors):
            if values is not None and not np.isfinite(values).all():
                return "NaN or infinity stands in a scale"
        if self.divisors is not None and not self.divisors.all():
            return "scales are divided by zero"
        return None

    def cut(self, start: int, stop: int) -> BlockRows:
        """Rows [start, stop)."""
        return self._each(lambda array: array[start:stop])

    def zeros(self) -> BlockRows:
        """As many rows, all of whose scales and minima are zero."""
        return self._each(np.zeros_like)

    def _each(self, change: Callable[[Any], Any]) -> BlockRows:
        values: list[Any] = [getattr(self, field.name) for field in fields(self)]
        changed: list[Any] = [None if value is None else change(value) for value in values]
        return BlockRows(*changed)


def joined(parts: Sequence[BlockRows]) -> BlockRows:
    """Rows of one type, one below the other."""
    if len(parts) == 1 or not len(parts[0]):
        return parts[-1]
    columns = [[getattr(part, field.name) for part in parts] for field in fields(BlockRows)]
    whole: list[Any] = [None if each[0] is None else np.concatenate(each) for each in columns]
    return BlockRows(*whole)
