"""The prompts under way in a step, as far as others of the same tenant have no room beside them."""

from __future__ import annotations

from collections.abc import Callable

from ockham.core.seams import Candidate
from ockham.engine.sequence import Sequence

MOST_LOOKUPS = 16
"""Long prompts in a step of which it is looked up whether most is held, so that they are short."""


class Crowd:
    """The prompts under way, by tenant, as far as another of the same tenant has no room beside
    them in the next step. However the policy divides that, the largest may get half of it only, so
    the others must fill the rest. A short prompt passes the long ones."""

    def __init__(
        self,
        prefilling: list[Sequence],
        short: int,
        budget: int,
        held: Callable[[Sequence], int],
    ) -> None:
        """`short` is the most rows of a short prompt; `held` tells how many cells are held."""
        self._prefilling, self._short, self._budget, self._held = prefilling, short, budget, held
        self._of: dict[str, list[Sequence]] = {}
        self._short_rows: dict[str, tuple[int, int]] = {}
        """The rows of a tenant's short prompts under way: the sum, and the most of one."""
        self._counted = 0
        self._held_of: dict[tuple[int, int], int] = {}
        """What is held of those that were looked up. A policy asks several times about the same
        one, and must get the same answer."""

    def leaves_room(self, candidate: Candidate) -> bool:
        """Whether a waiting sequence may begin beside the others of its tenant."""
        if not isinstance(candidate, Sequence):
            return False  # it is computed in steps of another kind: see `ockham.engine.texts`
        sequence = candidate
        for begun in self._prefilling[self._counted :]:
            self._of.setdefault(begun.tenant, []).append(begun)
            if (rows := begun.remaining) <= self._short:
                total, most = self._short_rows.get(begun.tenant, (0, 0))
                self._short_rows[begun.tenant] = (total + rows, max(most, rows))
        self._counted = len(self._prefilling)
        own = self._of.get(sequence.tenant)
        if own is None:
            return True
        rows = sequence.remaining
        if rows <= self._short:
            return not self._short_cover(sequence.tenant)
        before = sequence.order
        if not self._cover(
            [s.remaining for s in own if s.remaining > self._short or s.order < before]
        ):
            return True
        held = self._held_of.get(before)
        if held is None:
            if len(self._held_of) >= MOST_LOOKUPS:
                return False
            held = self._held_of[before] = self._held(sequence)
        if rows - held > self._short:
            return False
        return not self._short_cover(sequence.tenant)

    def _short_cover(self, tenant: str) -> bool:
        """Whether a tenant's short prompts leave no room, as `_cover` says it."""
        total, most = self._short_rows.get(tenant, (0, 0))
        return total > 0 and total - most >= self._budget

    def _cover(self, needs: list[int]) -> bool:
        return bool(needs) and sum(needs) - max(needs) >= self._budget
