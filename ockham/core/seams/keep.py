"""Which state stays: `Keep`."""

from __future__ import annotations

from typing import ClassVar, Protocol


class Keep(Protocol):
    """Which state stays. `first_kept` is the lowest cell that a layer group must still hold when
    the sequence's next row has logical index `length`; everything below may be let go."""

    name: ClassVar[str]

    def first_kept(self, length: int, window: int | None) -> int: ...
