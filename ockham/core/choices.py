"""How the rows of a step choose by their own query which blocks of keys they visit.

What `core.visits` says is known before a step runs. A *choice* is made inside the attention of
each layer, once its queries are known: a *chooser* of the backend says of each block of keys how
well the row's query heads may score there, from a summary of every 16 keys that is kept beside
them. The blocks that promise most are visited, beside the first ones and the latest ones. What a
row chooses follows from its own query and from the keys that it sees, alone.

The rows of a whole query block may also choose *together*, if they are all in one step. What they
choose follows from the queries of the block and from the keys up to its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Ints, Longs

TOGETHER = "antidiagonals"
"""The chooser of rows that choose together, with all key-value heads by one rule."""
BY_HEAD = "by_head"
"""The same, with each key-value head by a rule of its own: `LATEST`, `LINES` or `MEANS`."""
LATEST, LINES, MEANS = range(3)
RULES = ("latest", "lines", "means")
"""Their names, in this order."""
STRIDES = (8, 16)
NUMBERS, SHARES = 8, 3
"""Of each choice, as `Choices` has them."""
NO_CHOICE = -1
"""In place of a choice: the row visits all blocks, or those that its pattern names."""


class Choice(msgspec.Struct, frozen=True):
    """How the rows of one sequence choose in the layers of one group.

    A row that sees `n` keys visits `max(ceil(max(tokens, ceil(share * n)) / 64), sinks + local)`
    blocks with each key-value head: the first `sinks`, the latest `local`, its own included, and of
    the others those with the largest weight. A query head's weights are the softmax over blocks of
    their scores, as `chooser` estimates them; those of the query heads that read the key-value head
    are summed. Blocks whose score is more than `within` below the best block's, for each of those
    heads, are left out even so. Where `among` is given, a multiple of 64, the row visits all keys
    from that one on, and chooses among those before it alone: `n` is then no more than `among`.

    With `every`, a divisor of 64, rows choose at every so many-th key, and the first one that may;
    those after it visit the same blocks (`chosen_at`; arXiv:2502.14866). A backend holds
    what a row chose beside its key, where copies of whole slots (`Planes.copy`) take it along and
    nothing else does. So a sequence whose state comes in another way goes on from a row that
    chooses.

    With `chooser` TOGETHER, the 64 rows of a query block visit the same blocks with a key-value
    head: of its query heads, `stride` neighbouring queries and as many keys score the sum of their
    scores on an antidiagonal, divided by the stride (arXiv:2503.16428). A block weighs
    as much as the softmax of those gives its keys, summed over the rows and the query heads. Beside
    the first `sinks` and the latest `local` blocks, the heaviest are visited, until all that are
    visited weigh `threshold` of the sum, or are `share` of all (rounded up).

    With `chooser` BY_HEAD the rows of a block choose together, too, and a key-value head visits
    `rule_shares` of all blocks (rounded up), but no fewer than the first `sinks` and the latest
    `local`. What it visits beside those is said by `rules` (arXiv:2407.02490):

    - `LATEST`: the latest blocks (the A-shape). Nothing is computed to choose them.
    - `LINES`: the blocks with the largest sum of the probabilities of each `stride`-th row of the
      block, the last one included, over all keys that those rows see. What stands in a column or on
      a diagonal of the matrix of scores (a vertical or a slash) is seen by each of these rows.
    - `MEANS`: the blocks with the largest softmax of the scores of the mean query with the mean key
      of each block.

    The sums are over the query heads that read the head; ties go to the first block.
    """

    chooser: str
    layers: tuple[bool, ...]
    """Which of the group's layers choose; the others visit all."""
    first: int | None = None
    """Rows whose own key comes before this one visit all blocks; None: the rows of the prompt."""
    until: int | None = None
    """So do rows whose own key is this one or comes after it; None: none do."""
    tokens: int = 0
    share: float = 0.0
    sinks: int = 1
    local: int = 2
    within: float = float("inf")
    stride: int = 0
    threshold: float = 0.0
    among: int | None = None
    every: int = 1
    rules: tuple[tuple[int, ...], ...] = ()
    """Of each of the layers and key-value heads, with `chooser` BY_HEAD."""
    rule_shares: tuple[tuple[float, ...], ...] = ()
    """Likewise."""

    @property
    def together(self) -> bool:
        """Whether the rows of a query block choose together."""
        return self.chooser in (TOGETHER, BY_HEAD)

    def chosen_at(self, key: int, first: int) -> int:
        """The key whose row chooses what the row of `key` visits, which chooses too. `first` is
        that of the choice, or the prompt's length in its place."""
        return max(key - key % self.every, first)


class Choices(msgspec.Struct, frozen=True):
    """The choices of a step's R rows in the layers of one group: C of them."""

    rows: Ints  # (R,) which of the choices, or NO_CHOICE
    choosers: tuple[str, ...]  # (C,)
    numbers: Longs  # (C * 8,) first, until, tokens, sinks, local, stride, among (or -1), every
    shares: Doubles  # (C * 3,) share, within, threshold of each
    layers: Ints  # (C * layers,) 1 where the layer chooses
    rules: Ints  # (C * layers * kv_heads,), 0 of other choices; empty where none has rules
    rule_shares: Doubles  # likewise

    def of(self, row: int, layer: int, keys: int) -> Choice | None:
        """The choice of a row that sees so many keys, in the group's layer `layer`; None if it
        makes none there."""
        number = int(self.rows[row])
        if number == NO_CHOICE:
            return None
        whole = self.numbers.reshape(-1, NUMBERS)[number].tolist()
        first, until, tokens, sinks, local, stride, among, every = whole
        share, within, threshold = self.shares.reshape(-1, SHARES)[number].tolist()
        count = len(self.layers) // len(self.choosers)
        layers = self.layers[number * count : (number + 1) * count]
        if not first < keys <= until or not layers[layer]:
            return None
        return Choice(
            self.choosers[number],
            tuple(bool(each) for each in layers),
            first,
            until,
            tokens,
            share,
            sinks,
            local,
            within,
            stride,
            threshold,
            None if among < 0 else among,
            every,
        )

    def rule(self, row: int, layer: int, head: int) -> tuple[int, float]:
        """The rule of a head of the group's layer `layer`, and the share of blocks that it visits,
        of a row whose choice has rules."""
        of_choice = (len(self.choosers), len(self.layers) // len(self.choosers), -1)
        place = int(self.rows[row]), layer, head
        return (
            int(self.rules.reshape(of_choice)[place]),
            float(self.rule_shares.reshape(of_choice)[place]),
        )

    def choosing(self, rows: Ints, layer: int) -> npt.NDArray[np.bool_]:
        """Of which rows the choice is one of the group's layer `layer` too."""
        layers = self.layers.reshape(len(self.choosers), -1)[:, layer] != 0
        found: npt.NDArray[np.bool_] = layers[self.rows[rows]] & (self.rows[rows] != NO_CHOICE)
        return found


_NEVER = 1 << 62


def merged(rows: Ints, found: Sequence[Choice], firsts: Sequence[int]) -> Choices:
    """The choices of a step, `found`, of which each begins at the key that `firsts` says."""
    shapes = [np.shape(each.rules) for each in found if each.rules]
    none = np.zeros(shapes[0] if shapes else 0)
    return Choices(
        rows,
        tuple(each.chooser for each in found),
        np.array(
            [
                number
                for each, first in zip(found, firsts, strict=True)
                for number in (
                    first,
                    _NEVER if each.until is None else each.until,
                    each.tokens,
                    each.sinks,
                    each.local,
                    each.stride,
                    -1 if each.among is None else each.among,
                    each.every,
                )
            ],
            np.int64,
        ),
        np.array(
            [share for each in found for share in (each.share, each.within, each.threshold)],
            np.float64,
        ),
        np.array([layer for each in found for layer in each.layers], np.int32),
        np.concatenate([each.rules or none for each in found], axis=None).astype(np.int32),
        np.concatenate([each.rule_shares or none for each in found], axis=None).astype(np.float64),
    )
