"""Where state lies beside the pool of pages, and how it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ockham.core.arrays import Ints


class Fetch(Protocol):
    """State of a waiting prompt on its way back into the pool from where it lies farther away."""

    @property
    def done(self) -> bool:
        """Whether no more will come; what came is found by `Reuse.lookup`."""
        ...

    @property
    def brought(self) -> Sequence[tuple[range, str]]:
        """Cells that came, and from where, as the ledger calls it."""
        ...

    @property
    def reach(self) -> int:
        """Of the tokens before the last, how many the pool had when the fetch was done."""
        ...

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ...


class Tiers(Protocol):
    """Where pages of state lie beside the pool, found by what they hold. `tree` is the radix tree
    of a Reuse, which says what the pool holds."""

    def kept(self, tokens: Ints, salt: str, tables: Sequence[Ints], taken: Sequence[Ints]) -> None:
        """The cells of `tokens` are valid and stand in `tables`; the tree now holds `taken` too."""
        ...

    def letting_go(self, pages: Sequence[Ints]) -> None:
        """The tree is about to give up these pages of each group."""
        ...

    def fetch(self, tree: Any, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring back what follows the first of these tokens that the tree has.

        None if another is bringing back a part of it: then ask again."""
        ...

    def advance(self, tree: Any, beside_steps: bool) -> None:
        """Take in what has arrived; `beside_steps`: only so much that steps are not held up."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Sleep until something has arrived, if anything is on its way."""
        ...

    def held(self) -> list[Ints]:
        """Of each group, the pages of the pool that fetches hold."""
        ...

    def forget(self) -> None:
        """Forget what is in memory."""
        ...
