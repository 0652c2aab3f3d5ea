"""What a block type of GGUF files is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A block type. `group` inputs share a factor of the scale, or 0; `signed` says that those
    factors are; `zero` is the code that means zero where there are no minima.

    `levels` are what codes stand for, where they are looked up. A scale is an fp16 number over
    2 ** `halvings`, or a byte, as `scale` says: `exponent` is e for 2 ** (e - 128), `small` half of
    a float of 8 bits (E4M3). With `divisors` each row has a number that divides its scales."""

    inputs: int
    bits: int
    zero: int = 0
    minima: bool = False
    group: int = 0
    signed: bool = False
    levels: tuple[int, ...] = ()
    scale: Literal["half", "exponent", "small"] = "half"
    halvings: int = 0
    divisors: bool = False

    @property
    def groups(self) -> int:
        return self.inputs // self.group if self.group else 0

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return len(self.levels) or 1 << self.bits
