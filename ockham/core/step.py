"""The step: a flat list of token rows, with no padding, from any number of sequences.

A prefill, a chunk of one, a decode, the verification of a draft chain or tree, the scoring of a
prompt: all are rows of a step. Built once per iteration of the engine (`ockham.core.rows`), read by
every operation.

Words: a *cell* is an index into what one group of layers holds of one sequence, a *slot* the place
in the group's pool where the page table puts that cell, a *position* what the rotary embedding
sees. The three differ as soon as state is shared, discarded or reused elsewhere, and groups may
hold different cells of the same sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles as Doubles
from ockham.core.arrays import Floats as Floats
from ockham.core.arrays import Ints as Ints
from ockham.core.arrays import Longs as Longs
from ockham.core.choices import Choices
from ockham.core.sparing import Sparing
from ockham.core.visits import Visits

NO_ROWS: Ints = np.empty(0, np.int32)


class PackedAdapter(Protocol):
    """What is added to products for the rows of one adapter, as a backend packed it."""

    @property
    def nbytes(self) -> int: ...


@dataclass(slots=True)
class Tables:
    """The page tables of one layer group for the sequences of a step, one after another.

    Page `p` of sequence `s` is `pages[starts[s] + p]`; -1 where the page was let go (it lies
    before a sliding window) and must not be read.
    """

    pages: Ints  # (sum of table lengths,)
    starts: Ints  # (sequences + 1,)

    def slots(self, sequence: Ints, cells: Ints, page_tokens: int) -> Longs:
        """The slot of each (sequence, cell) pair."""
        page: Longs = self.pages[self.starts[sequence] + cells // page_tokens].astype(np.int64)
        return page * page_tokens + cells % page_tokens


@dataclass(slots=True)
class GroupRows:
    """Where one group of layers writes the state of a step's R rows, and what they see there.

    Row `r` sees, in this order, the cells `[0, context[r])` of its sequence and then the cells
    `extra[extra_starts[r] : extra_starts[r + 1]]`; its own cell is the last of them. A row of a
    chain has `context = cell + 1` and no extras; a node of a draft tree has the committed length
    as its context and its ancestors and itself as extras, so that its keys stand in the order in
    which they would have been decoded one by one. Groups that hold the same cells share arrays.
    """

    tables: Tables
    slots: Longs  # (R,) the slots of `cells`
    cells: Ints  # (R,) where the row's state is written
    context: Ints  # (R,)
    extra: Ints | None = None  # cells, all rows' lists one after another
    extra_starts: Ints | None = None  # (R + 1,)
    visits: Visits | None = None
    """Which blocks of those cells the rows visit; None for all."""
    choices: Choices | None = None
    """How rows choose by themselves among those blocks, where the layers have no window; None: no
    row does."""

    @property
    def keys_seen(self) -> Ints:
        """(R,) how many keys each row sees where there is no window."""
        if self.extra_starts is None:
            return self.context
        return self.context + np.diff(self.extra_starts)


@dataclass(slots=True)
class ActiveRows:
    """Operations [start, stop) of the program compute only these rows of a step: for the others
    they do no product, no attention and no write of state, and leave the residual stream as it
    is. A range holds all operations of a sublayer, or none."""

    start: int
    stop: int
    rows: Ints  # ascending


@dataclass(slots=True)
class RowSets:
    """Sets of a step's rows, each of one sequence, none of them empty."""

    rows: Ints
    """Set i is `rows[starts[i] : starts[i + 1]]`."""
    starts: Ints

    def __iter__(self) -> Iterator[Ints]:
        for start, stop in pairwise(self.starts.tolist()):
            yield self.rows[start:stop]


@dataclass(slots=True)
class Step:
    """R rows of S sequences. Rows of one sequence are contiguous and in the order of their
    tokens."""

    ids: Ints  # (R,) token ids; ignored where embedding_of is not -1
    positions: Ints  # (R,)
    sequence: Ints  # (R,) which of the S sequences
    groups: tuple[GroupRows, ...]  # one per layer group
    page_tokens: int
    wants_logits: Ints  # (L,) row numbers, ascending
    seeds: npt.NDArray[np.uint64]  # (R,) noise key of the row's sequence, 0 where there is none
    embeddings: Floats | None = None  # (E, hidden) inputs that are not tokens
    embedding_of: Ints | None = None  # (R,) index into embeddings, or -1
    wants_hidden: dict[int, Ints] = field(default_factory=dict)
    """Layer -> rows whose hidden states are wanted as they stand after that layer (-1: after the
    embedding; the number of layers: after the final norm, of a program that ends in hidden states
    and not in logits)."""
    wants_argmax: Ints = field(default_factory=lambda: NO_ROWS)
    """(A,) rows of which only the likeliest token is wanted, none of them in `wants_logits`: their
    logits are never all in memory."""
    candidates: int = 0
    """How many of the likeliest tokens are wanted of each row that wants logits or an argmax."""
    wants_scores: dict[int, Ints] = field(default_factory=dict)
    """Layer -> rows whose attention probabilities are wanted, for each key-value head."""
    wants_score_sums: dict[int, Ints] = field(default_factory=dict)
    """Layer -> rows whose attention probabilities are wanted, summed over all query heads."""
    wants_queries: dict[int, Ints] = field(default_factory=dict)
    """Layer -> rows whose queries are wanted, as its attention reads them: rotated, not scaled."""
    wants_recall: Ints = field(default_factory=lambda: NO_ROWS)
    """Rows of which it is wanted how much of their attention is on what they visit. Each of them
    looks at all keys that it sees once more, and nothing comes of that but the share."""
    wants_score_totals: dict[int, RowSets] = field(default_factory=dict)
    """Layer -> sets of rows whose attention probabilities are wanted in sum over the set, for each
    key-value head."""
    active: tuple[ActiveRows, ...] = ()
    """Where some rows do not run, in the order of the program; elsewhere all rows do. A row that
    does not run a layer's attention has no scores there: (kv_heads, 0), and (0,)."""
    leading: dict[int, int] = field(default_factory=dict)
    """Operation of the program, a feed-forward -> how many of its neurons all rows compute, the
    first ones; the others count as 0. Elsewhere all are computed."""
    sparing: Sparing | None = None
    """How much of their feed-forwards rows run, where that is decided on the way; None: all of
    them."""
    deeper: Doubles | None = None
    """(passes that rows may leave out, R) what is added to the scores by which rows take each pass;
    None for nothing."""
    adapters: tuple[PackedAdapter | None, ...] | None = None
    """(S,) what is added to the products of each sequence's rows, None for nothing; None where
    nobody has any."""

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def sequences(self) -> int:
        return len(self.groups[0].tables.starts) - 1


@dataclass(slots=True)
class StepOutput:
    """What a step wanted.

    `scores[layer][i]` (kv_heads, keys) has, for each key-value head, one value for each key that
    the i-th wanting row sees, in order: the sum over the query heads that read the head.
    `score_sums[layer][i]` (keys,) is the sum over all query heads, one after the other.
    """

    logits: Floats  # (L, vocabulary), in the order of Step.wants_logits
    hidden: dict[int, Floats] = field(default_factory=dict)  # (wanting rows, hidden)
    scores: dict[int, list[Floats]] = field(default_factory=dict)
    argmax: list[int] = field(default_factory=list)
    """Of each row of Step.wants_argmax, the token with the largest logit, the lowest on a tie."""
    largest: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """(A,) the logits of `argmax`."""
    candidates: Ints = field(default_factory=lambda: np.empty((0, 0), np.int32))
    """(L + A, candidates) the likeliest tokens of each row of Step.wants_logits, then of
    Step.wants_argmax, the likeliest first, the lowest first on a tie; -1 where there are no
    more."""
    score_sums: dict[int, list[Floats]] = field(default_factory=dict)
    recall: dict[int, Floats] = field(default_factory=dict)
    """Of each layer in whose group some rows leave blocks out, (wanting rows, kv_heads): the share
    of attention on keys that the row visits, if it looked at all that it sees, as the mean over the
    query heads that read the head; 1 for a row that does not attend. It is e^(LSE of the visited
    scores - LSE of all)."""
    score_totals: dict[int, list[Doubles]] = field(default_factory=dict)
    """`score_totals[layer][i]` (kv_heads, keys) has, for each key that some row of the i-th set
    sees, the sum of `scores` over the set's rows. Each value is rounded to a multiple of 2^-32
    first, so that any order of summing gives the same bits; (kv_heads, 0) if no row runs the
    layer."""
    left_out: dict[int, Longs] = field(default_factory=dict)
    """Of each group in which rows may choose (3, R), summed over the layers and key-value heads:
    how many keys a row saw and did not visit because it chose others, less as many as take the
    products by which rows chose together; how many bytes were read to choose, 0 for a row that did
    not; and how many cells were read by what it visits, 0 too for one that leaves nothing out. Rows
    of one sequence that choose together share these bytes, and the first of them has the cells of
    all."""
    queries: dict[int, Floats] = field(default_factory=dict)
    """(wanting rows, heads * head_dim); zeros of a row that does not run the layer's attention."""
    spared: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """(layers, R) how many neurons of the layer's feed-forward a row ran by `Step.sparing`, -1 for
    none, 0 for all; (0, 0) where nothing is decided."""
    deep: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """(passes that rows may leave out, R) whether each row took the pass, 1 or 0; (0, 0) of a model
    without any."""
