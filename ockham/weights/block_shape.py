"""What a block type of GGUF files is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockShape:
    """A block type. `group` inputs share a factor of the scale, or 0; `signed` says that those
    factors are; `zero` is the code that means zero where there are no minima."""

    inputs: int
    bits: int
    zero: int = 0
    minima: bool = False
    group: int = 0
    signed: bool = False

    @property
    def groups(self) -> int:
        return self.inputs // self.group if self.group else 0
