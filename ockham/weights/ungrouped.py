"""What a format says of its groups where every matrix of it has the same ones, or none."""

from __future__ import annotations

from typing import Self

from ockham.core.seams import Linear


class Ungrouped:
    """A format whose matrices of one shape are all laid out alike: its files record no group."""

    group: int = 0

    @classmethod
    def of_group(cls, group: int) -> Self:
        if group:
            raise ValueError(f"its group is {group!r}")
        return cls()

    @classmethod
    def group_of(cls, linear: Linear) -> int:
        return 0
