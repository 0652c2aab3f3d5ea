"""A draft tree while it grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ockham.core.arrays import Floats
from ockham.core.seams import Draft, Wish
from ockham.draft.modelled.stream import ROOT, ModelStream

EDGES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
FIRST_PRIOR = (0.05, 0.12, 0.22, 0.35, 0.5, 0.65, 0.78, 0.88, 0.95)
"""Prior acceptance of a top-ranked token, by the bin of its probability (EDGES)."""
OTHER_EDGES = (0.02, 0.05, 0.1, 0.2, 0.35)
OTHER_PRIOR = (0.01, 0.03, 0.06, 0.12, 0.22, 0.35)
"""Prior acceptance of the tokens ranked below it, whose probability is at most one half."""
MOST_COMPUTED = 64
"""Rows of the draft model for one draft."""
_WIDEST = 8
"""Tokens of one depth, of one sequence, that are continued."""


class Growing:
    """One sequence's draft: tokens with their parents, kinds and chances (that they and all their
    ancestors are accepted), and for those whose row is computed, the row's cell."""

    def __init__(self, stream: ModelStream, wish: Wish) -> None:
        self.stream, self.wish = stream, wish
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.chances: list[float] = []
        self._kinds: list[int] = []
        self._cells: list[int] = []
        self._computed = 0
        self._fresh: list[int] = []
        self.carried: dict[int, Floats] = {}
        """Of tokens whose rows are computed, and of `ROOT`: what is carried to those below, (n,),
        where something is."""

    def chance(self, number: int) -> float:
        """Of a token, or of `ROOT`, which is said already."""
        return 1.0 if number == ROOT else self.chances[number]

    def position(self, number: int) -> int:
        """That of the tokens below one."""
        return self.stream.position + (0 if number == ROOT else self.depths[number])

    def branch(self, number: int, choices: Sequence[tuple[int, float]], worth: float) -> None:
        """Add what may follow a token: distinct tokens, the likeliest first, with their shares."""
        best = 0.0
        for rank, (token, share) in enumerate(choices):
            kind = kind_of(rank, share)
            best = max(best, self.wish.accepted[kind])
            chance = self.chance(number) * self.wish.accepted[kind]
            if chance < worth:
                continue
            self._fresh.append(len(self.tokens))
            self.tokens.append(token)
            self.parents.append(number)
            self.depths.append(1 if number == ROOT else self.depths[number] + 1)
            self.chances.append(chance)
            self._kinds.append(kind)
            self._cells.append(ROOT)
        self.stream.following += 0.2 * (best - self.stream.following)

    def continuable(self) -> list[int]:
        """Of the tokens that came last, those below which more could be drafted: what follows a
        token is no likelier than it, and only the likeliest `wish.most` are proposed."""
        most = self.wish.most
        bar = sorted(self.chances, reverse=True)[most - 1] if len(self.chances) >= most else 0.0
        fresh, self._fresh = self._fresh, []
        found = [
            number for number in fresh if self.chances[number] > bar and self.depths[number] < most
        ]
        found.sort(key=lambda number: -self.chances[number])
        return found[: min(_WIDEST, MOST_COMPUTED - self._computed)]

    def compute(self, number: int, cell: int) -> list[int]:
        """The token's row is computed in this cell; the cells of its ancestors."""
        parent, above = self.parents[number], []
        self.stream.grow(ROOT if parent == ROOT else self._cells[parent], self.tokens[number], cell)
        self._cells[number] = cell
        self._computed += 1
        while parent != ROOT:
            above.append(self._cells[parent])
            parent = self.parents[parent]
        return above[::-1]

    def draft(self) -> Draft | None:
        """The likeliest `wish.most` tokens; a parent is no less likely than its children."""
        ranked = sorted(range(len(self.tokens)), key=lambda number: (-self.chances[number], number))
        chosen = sorted(ranked[: self.wish.most])
        if not chosen:
            return None
        place = {number: i for i, number in enumerate(chosen)} | {ROOT: ROOT}
        return Draft(
            [self.tokens[number] for number in chosen],
            [place[self.parents[number]] for number in chosen],
            [self._kinds[number] for number in chosen],
        )


def kind_of(rank: int, share: float) -> int:
    """The kind of a choice: the first ones by their share, then the others by theirs."""
    if rank == 0:
        return bisect_right(EDGES, share)
    return len(FIRST_PRIOR) + bisect_right(OTHER_EDGES, share)
