"""What a JSON text is made of, counted before any of it is parsed.

Parsing holds Python's lock from beginning to end, and with it the event loop, whichever thread
does it. How long it takes goes by the number of values rather than by the bytes: so these are
counted first, block by block, and the lock is free between two blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from ockham.core.errors import InvalidRequest

BLOCK_BYTES = 256 << 10
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEEPER = frozenset(b"[{")


@dataclass(frozen=True, slots=True)
class Most:
    """The most that one body may hold; `max_json_*` of `ServerSettings`."""

    items: int
    values: int
    depth: int


class Counter:
    """Counts what the JSON texts of one request hold together."""

    def __init__(self, most: Most) -> None:
        self._most = most
        self._marks = 0
        """Quotes and brackets, of which two make an item."""
        self._values = 0

    def count(self, text: bytes | bytearray, what: str = "The body") -> None:
        """Count one text, called `what`. Raises `InvalidRequest` for one item too many, or for
        nesting that is too deep. A text that is no JSON is counted in some way or other."""
        in_string = False
        depth = begin = 0
        while begin < len(text):
            block = bytes(text[begin : begin + BLOCK_BYTES])
            if len(block) == BLOCK_BYTES and _odd_backslashes(block):
                block = block[:-1]  # what it escapes stands in the next block
            begin += len(block)
            parts = block.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
            outside = b"".join(parts[in_string::2])
            in_string ^= not len(parts) % 2
            self._values += outside.count(b",")
            brackets = outside.translate(None, _NOT_BRACKETS)
            self._marks += len(parts) - 1 + len(brackets)
            self._check(what)
            depth = self._deepest(brackets, depth, what)

    def _check(self, what: str) -> None:
        for name, count, most, meant in (
            ("items", self._marks // 2, self._most.items, "texts, lists and objects"),
            ("values", self._values, self._most.values, "entries of lists and objects"),
        ):
            if count > most:
                raise InvalidRequest(
                    f"{what} holds more than {most} {meant}. Split the request, or start the "
                    f"server with a larger --max-json-{name}."
                )

    def _deepest(self, brackets: bytes, depth: int, what: str) -> int:
        """The depth after these brackets, which begin at `depth`."""
        for bracket in brackets:
            if bracket in _DEEPER:
                depth += 1
                if depth > self._most.depth:
                    raise InvalidRequest(
                        f"{what} is nested more than {self._most.depth} deep. Make it flatter, or "
                        "start the server with a larger --max-json-depth."
                    )
            else:
                depth -= 1
        return depth


def _odd_backslashes(block: bytes) -> bool:
    return (len(block) - len(block.rstrip(b"\\"))) % 2 == 1
