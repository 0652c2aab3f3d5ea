"""Which blocks of keys the rows of a step visit.

A *logical key* is numbered by the order in which a row sees it: the cells of its context, then its
extra cells. *Blocks* are `BLOCK_KEYS` neighbouring logical keys between fixed borders, and queries
have the same blocks: a row belongs to the *query block* of its own key. What depends on these
numbers alone is the same in a prefill, in a decode and in the verification of a draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Ints

BLOCK_KEYS = 64
"""Keys of a block, as csrc/kernels/layer_kernels.h has them."""
EVERY = -1
"""In place of a list of blocks: all are visited. In place of a query block: by all heads."""


class BlockVisits(msgspec.Struct, frozen=True):
    """What the rows of one query block visit in the layers of one group.

    Head `h` of the group's layer `i` visits the blocks `lists[of[i, h]]`, which ascend and hold the
    query block itself, or all blocks where `of` is `EVERY`.
    """

    lists: tuple[Ints, ...]
    of: Ints  # (layers, kv_heads)


class Skipped(msgspec.Struct, frozen=True):
    """What some rows did not visit in one group, summed over its layers and key-value heads:
    `keys` that a row would have looked at, and `cells` that no row looked at of those that one
    would have read, less those that several rows read, each by itself. `read_bytes` were read, and
    `flops` computed, to find that out."""

    keys: int = 0
    cells: int = 0
    read_bytes: int = 0
    flops: int = 0

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(
            self.keys + other.keys,
            self.cells + other.cells,
            self.read_bytes + other.read_bytes,
            self.flops + other.flops,
        )


class Visits(msgspec.Struct, frozen=True):
    """Which blocks R rows visit in the layers of one group.

    A row of the step's query block `q` visits with head `h` of the group's layer `i` the blocks of
    list `l = lists[q, i, h]`: `blocks[starts[l] : starts[l + 1]]`, ascending. It sees those of its
    keys that are in them, in order, and always its own. `EVERY` stands for all blocks in `lists`,
    and in `query_blocks` for a row that visits them all with every head.
    """

    query_blocks: Ints  # (R,)
    lists: Ints  # (Q, layers, kv_heads)
    starts: Ints  # (L + 1,)
    blocks: Ints

    def list(self, number: int) -> Ints:
        return self.blocks[self.starts[number] : self.starts[number + 1]]

    def mask(self, row: int, layer: int, keys: int) -> npt.NDArray[np.bool_]:
        """Which of a row's logical keys [0, keys) each head of the group's layer visits:
        (kv_heads, keys)."""
        query = int(self.query_blocks[row])
        heads = self.lists.shape[2]
        if query == EVERY:
            return np.ones((heads, keys), np.bool_)
        visited = np.zeros((heads, -(-keys // BLOCK_KEYS)), np.bool_)
        for head, number in enumerate(self.lists[query, layer].tolist()):
            if number == EVERY:
                visited[head] = True
            else:
                own = self.list(number)
                visited[head, own[own < visited.shape[1]]] = True
        return np.repeat(visited, BLOCK_KEYS, axis=1)[:, :keys]

    def skipped(self, rows: slice, low: Ints, high: Ints) -> Skipped:
        """What neighbouring rows of one sequence did not visit, of which row i sees the keys
        [low[i], high[i])."""
        queries = self.query_blocks[rows]
        present = np.unique(queries)
        of = self.lists.reshape(len(self.lists), -1)[present[present != EVERY]]
        if not len(of):
            return Skipped()
        # Heads that visit the same in each of the query blocks are counted together.
        columns, counts = np.unique(of, axis=1, return_counts=True)
        first, last = int(low.min()), int(high.max())
        keys = cells = 0
        for column, count in zip(columns.T, counts.tolist(), strict=True):
            numbers = dict(zip(present[present != EVERY].tolist(), column.tolist(), strict=True))
            read = np.zeros(last - first, np.bool_)
            for query in present.tolist():
                own_low, own_high = low[queries == query], high[queries == query]
                number = numbers.get(query, EVERY)
                if number == EVERY:
                    read[own_low.min() - first : own_high.max() - first] = True
                    continue
                left, right = self._visited(number, own_low, own_high)
                keys += count * (int((own_high - own_low).sum()) - int((right - left).sum()))
                # A row whose window begins behind a block ends it, empty, behind the block too.
                ends = np.where(right > left, right, 0).max(axis=0)
                for begin, end in zip(left.min(axis=0), ends, strict=True):
                    read[begin - first : max(begin, end) - first] = True
            cells += count * int(len(read) - read.sum())
        return Skipped(keys, cells)

    def skipped_keys(self, row: int, low: Ints, high: Ints) -> int:
        """How many keys are not visited by rows like this one, of which the i-th sees the keys
        [low[i], high[i]), summed over layers and heads."""
        query, keys = int(self.query_blocks[row]), 0
        if query == EVERY:
            return 0
        for number, count in zip(*np.unique(self.lists[query], return_counts=True), strict=True):
            if number != EVERY:
                left, right = self._visited(int(number), low, high)
                keys += int(count) * (int((high - low).sum()) - int((right - left).sum()))
        return keys

    def _visited(self, number: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Where the keys begin and end that rows see in each block of a list: (rows, blocks)."""
        begins = self.list(number) * BLOCK_KEYS
        left = np.maximum(begins, low[:, None])
        return left, np.maximum(np.minimum(begins + BLOCK_KEYS, high[:, None]), left)


def merged(query_blocks: Ints, found: Sequence[BlockVisits]) -> Visits:
    """The visits of a step, of whose query blocks `found` says what they visit, in order."""
    every: list[Ints] = []
    of = []
    for visits in found:
        of.append(np.where(visits.of == EVERY, EVERY, visits.of + len(every)))
        every += visits.lists
    return Visits(
        query_blocks,
        np.array(of, np.int32),
        np.cumsum([0, *map(len, every)], dtype=np.int32),
        np.concatenate(every).astype(np.int32) if every else np.empty(0, np.int32),
    )
