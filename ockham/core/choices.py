"""How the rows of a step choose by their own query which blocks of keys they visit.

What `core.visits` says is known before a step runs. A *choice* is made inside the attention of
each layer, once its queries are known: a *chooser* of the backend says of each block of keys how
well the row's query heads may score there, from a summary of every 16 keys that is kept beside
them. The blocks that promise most are visited, beside the first ones and the latest ones. What a
row chooses follows from its own query and from the keys that it sees, alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Ints, Longs

NO_CHOICE = -1
"""In place of a choice: the row visits all blocks, or those that its pattern names."""


class Choice(msgspec.Struct, frozen=True):
    """How the rows of one sequence choose in the layers of one group.

    A row that sees `n` keys visits `max(ceil(max(tokens, ceil(share * n)) / 64), sinks + local)`
    blocks with each key-value head: the first `sinks`, the latest `local`, its own included, and of
    the others those with the largest weight. A query head's weights are the softmax over blocks of
    their scores, as `chooser` estimates them; those of the query heads that read the key-value head
    are summed. Blocks whose score is more than `within` below the best block's, for each of those
    heads, are left out even so.
    """

    chooser: str
    layers: tuple[bool, ...]
    """Which of the group's layers choose; the others visit all."""
    first: int | None = None
    """Rows whose own key comes before this one visit all blocks; None: the rows of the prompt."""
    tokens: int = 0
    share: float = 0.0
    sinks: int = 1
    local: int = 2
    within: float = float("inf")


class Choices(msgspec.Struct, frozen=True):
    """The choices of a step's R rows in the layers of one group: C of them."""

    rows: Ints  # (R,) which of the choices, or NO_CHOICE
    choosers: tuple[str, ...]  # (C,)
    numbers: Longs  # (C * 4,) first, tokens, sinks, local of each
    shares: Doubles  # (C * 2,) share, within of each
    layers: Ints  # (C * layers,) 1 where the layer chooses

    def of(self, row: int, layer: int, keys: int) -> Choice | None:
        """The choice of a row that sees so many keys, in the group's layer `layer`; None if it
        makes none there."""
        number = int(self.rows[row])
        if number == NO_CHOICE:
            return None
        first, tokens, sinks, local = self.numbers[4 * number : 4 * number + 4].tolist()
        share, within = self.shares[2 * number : 2 * number + 2].tolist()
        count = len(self.layers) // len(self.choosers)
        layers = self.layers[number * count : (number + 1) * count]
        if keys <= first or not layers[layer]:
            return None
        chooses = tuple(bool(each) for each in layers)
        return Choice(self.choosers[number], chooses, first, tokens, share, sinks, local, within)

    def choosing(self, rows: Ints, layer: int) -> npt.NDArray[np.bool_]:
        """Of which rows the choice is one of the group's layer `layer` too."""
        layers = self.layers.reshape(len(self.choosers), -1)[:, layer] != 0
        found: npt.NDArray[np.bool_] = layers[self.rows[rows]] & (self.rows[rows] != NO_CHOICE)
        return found


def merged(rows: Ints, found: Sequence[Choice], firsts: Sequence[int]) -> Choices:
    """The choices of a step, `found`, of which each begins at the key that `firsts` says."""
    return Choices(
        rows,
        tuple(each.chooser for each in found),
        np.array(
            [
                number
                for each, first in zip(found, firsts, strict=True)
                for number in (first, each.tokens, each.sinks, each.local)
            ],
            np.int64,
        ),
        np.array([share for each in found for share in (each.share, each.within)], np.float64),
        np.array([layer for each in found for layer in each.layers], np.int32),
    )
