"""Numbers for tenants, so that what several share the room of is told apart by a number."""

from __future__ import annotations

import hashlib

_MOST = 4096


class Tenants:
    """Each salt has a number of its own, and never that of another.

    The most recent thousands are known: who comes back after that begins anew. Salts are kept as
    digests, because they may be secrets and may be saved."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        """Digest -> number, the latest used last."""
        self._next = 0

    def number(self, salt: str) -> int:
        digest = hashlib.sha256(salt.encode()).hexdigest()
        number = self.numbers.pop(digest, None)
        if number is None:
            number = self._next
            self._next += 1
            if len(self.numbers) >= _MOST:
                del self.numbers[next(iter(self.numbers))]
        self.numbers[digest] = number
        return number

    def restore(self, numbers: dict[str, int]) -> None:
        """Go on with the numbers of another run."""
        self.numbers = dict(numbers)
        self._next = max(numbers.values(), default=-1) + 1
