"""Where techniques hook into a program: at its breakpoints, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from ockham.core.errors import ConfigError
from ockham.kernels.base import Run
from ockham.kernels.ops import Program

Hook = Callable[[Run], None]
Range = tuple[int, int, Hook | None]


class Attachments:
    """Hooks by breakpoint, and the ranges of the program that a backend runs between them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._hooks: list[tuple[int, Hook]] = []
        self._ranges: list[Range] = [(0, len(program.ops), None)]

    def __bool__(self) -> bool:
        """Whether anything is attached."""
        return bool(self._hooks)

    def add(self, name: str, hook: Hook) -> None:
        """Raises ConfigError, with some names that exist, if there is no such breakpoint."""
        if name not in self._program.breakpoints:
            known = ", ".join(list(self._program.breakpoints)[:6])
            raise ConfigError(f"the program has no breakpoint {name!r}; it has {known}, ...")
        self._hooks.append((self._program.breakpoints[name], hook))
        self._hooks.sort(key=lambda item: item[0])  # stable: hooks of one place run as attached
        self._ranges = []
        start = 0
        for at, attached in self._hooks:
            self._ranges.append((start, at, attached))
            start = at
        self._ranges.append((start, len(self._program.ops), None))

    def ranges(self) -> list[Range]:
        """(start, stop, hook to call at `stop`); one range and no hook with nothing attached."""
        return self._ranges
