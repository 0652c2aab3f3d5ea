"""Behaviour: what programs in texts do, by which they are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from ockham.core.seams import Programs

Outputs = tuple[str, ...]
"""What each call returned, or "raises KIND"."""

RAISES = "raises "
_FENCE = "```"
_PIECES = re.compile(
    r"""(?P<string>'''(?:[^\\]|\\.)*?(?:'''|\Z)|\"\"\"(?:[^\\]|\\.)*?(?:\"\"\"|\Z)"""
    r"""|'(?:[^'\\\n]|\\.)*'?|"(?:[^"\\\n]|\\.)*"?)"""
    r"""|(?P<comment>\#[^\n]*)|(?P<space>(?<=\S)[ \t]+)|(?P<other>\w+|.)""",
    re.DOTALL,
)
"""Every piece ends, if only with the text: no place is looked at twice."""
_TWO_WORDS = re.compile(r"[\w'\"]{2}")
"""What a space keeps apart."""


class Trials:
    """The programs of one request, each run once however often it is written."""

    def __init__(self, programs: Programs, calls: Sequence[str]) -> None:
        self._programs, self._calls = programs, tuple(calls)
        self._runs: dict[str, Future[Outputs]] = {}
        self._runs_spared = 0

    def submit(self, text: str) -> Future[Outputs]:
        """The outputs of the program in a text, later."""
        program = program_of(text)
        key = normal_form(program)
        if key in self._runs:
            self._runs_spared += 1
        else:
            self._runs[key] = self._programs.submit(program, self._calls)
        return self._runs[key]

    @property
    def runs(self) -> int:
        """Programs that were run."""
        return len(self._runs)

    @property
    def runs_spared(self) -> int:
        """Programs that were not, as one that is the same was."""
        return self._runs_spared

    def cancel(self) -> None:
        """Nobody waits any more."""
        for future in self._runs.values():
            future.cancel()


def program_of(text: str) -> str:
    """The program in a text: the last block between fences, whose end may be missing, else all."""
    parts = text.split(_FENCE)
    if len(parts) < 2:
        return text
    last = len(parts) - 1 if len(parts) % 2 == 0 else len(parts) - 2
    _, newline, block = parts[last].partition("\n")  # the first line names the language
    return block if newline else parts[last]


def normal_form(program: str) -> str:
    """The same for programs that differ in comments, empty lines and spaces within lines only."""
    pieces: list[str] = []
    apart = False
    for match in _PIECES.finditer(program):
        piece = match.group()
        if match.lastgroup == "space":
            apart = True
        elif match.lastgroup != "comment":
            if match.lastgroup == "string":
                piece = piece.replace("\n", "\0")  # its lines are none of the program's
            between = pieces[-1][-1:] + piece[:1] if pieces else ""
            pieces.append(f" {piece}" if apart and _TWO_WORDS.fullmatch(between) else piece)
            apart = False
    lines = "".join(pieces).split("\n")
    return "\n".join(line for line in lines if line.strip())


def similarity(one: Outputs, other: Outputs) -> float:
    """The share of calls that return the same in both, of those that return in one of them."""
    equal = either = 0
    for a, b in zip(one, other, strict=True):
        returns = not a.startswith(RAISES), not b.startswith(RAISES)
        either += any(returns)
        equal += all(returns) and a == b
    return equal / either if either else 0.0


def agreements(outputs: Mapping[int, Outputs]) -> dict[int, float]:
    """Of each program the sum of its similarities to the others."""
    return {
        number: sum(similarity(own, other) for n, other in outputs.items() if n != number)
        for number, own in outputs.items()
    }
