"""The pool of pages of state, as far as techniques may touch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ockham.core.arrays import Ints


class PagePool(Protocol):
    """The pool of pages, as far as a Reuse may touch it. Lists are by layer group."""

    page_tokens: int
    windows: tuple[int, ...]
    """The sliding window of each group, 0 for none."""
    apart: tuple[int, ...]
    """The groups whose layers keep no keys and values, where others do: what they keep is large,
    held at few places of a context, and may be let go of without the others' pages."""
    sizes: tuple[int, ...]
    """How many pages each group has."""
    reclaim: Callable[[list[int]], None] | None
    """Asked to make so many pages of each group free, when there are fewer."""

    def free_pages(self) -> list[int]: ...

    def take(self, counts: Sequence[int]) -> list[Ints] | None:
        """So many pages of each group, held once; None, and nothing changed, if there are fewer."""
        ...

    def hold(self, pages: Sequence[Ints]) -> None:
        """Count one more holder of each page."""
        ...

    def drop(self, pages: Sequence[Ints]) -> None:
        """Count one holder less; a page that nobody holds is free."""
        ...

    def holders(self, group: int, pages: Ints) -> Ints:
        """How often each of the pages is held."""
        ...
