"""A mapping of bounded size: the plain twin of csrc/drafts/bounded_map.h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = tuple[int, int, int]
"""Tenant, and one or two tokens (the second is -1 where there is one)."""
Value = TypeVar("Value")
_MOST_USES = 3


class BoundedMap(Generic[Value]):
    """When it is full, an entry leaves that was not used for long, where each use saves an entry
    once, up to three times (a clock)."""

    def __init__(self, capacity: int, empty: Callable[[], Value]) -> None:
        self._capacity = capacity
        self._empty = empty
        self._found: dict[Key, int] = {}
        self._entries: list[tuple[Key, Value]] = []
        self._uses: list[int] = []
        self._hand = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> Value | None:
        found = self._found.get(key)
        return None if found is None else self._entries[found][1]

    def use(self, key: Key) -> Value:
        """Use an entry, which is empty if it is new."""
        number = self._found.get(key)
        if number is None:
            number = self._found[key] = self._allocate()
            self._entries[number] = (key, self._empty())
            self._uses[number] = 0
        self._uses[number] = min(_MOST_USES, self._uses[number] + 1)
        return self._entries[number][1]

    def _allocate(self) -> int:
        if len(self._entries) < self._capacity:
            self._entries.append(((-1, -1, -1), self._empty()))
            self._uses.append(0)
            return len(self._entries) - 1
        while True:
            if self._hand == len(self._entries):
                self._hand = 0
            number = self._hand
            self._hand += 1
            if not self._uses[number]:
                del self._found[self._entries[number][0]]
                return number
            self._uses[number] -= 1
