"""The rows of one sequence in a step, and where their outputs stand: `Part`."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from ockham.core.arrays import Ints
from ockham.core.visits import Skipped
from ockham.engine.gates import Run
from ockham.engine.passes import Deep
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.tree import Tree


@dataclass(slots=True)
class Part:
    """One chunk of a step: `start` is its first row's cell, `logits` the rows of the step's logits
    that belong to it. `samples` says whether its last row chooses the next token; `argmax` is which
    of the step's argmaxes that is, None if the token is to be drawn from the last of its logits, or
    known without any (`Sequence.forced`). `runs` are the runs of consecutive cells that its rows
    stand in, each as (first cell, rows). With a `draft`, `rows` counts its tokens, and each of its
    rows wants what the last row before it wants."""

    sequence: Sequence
    start: int
    rows: int
    logits: range
    samples: bool
    argmax: int | None
    runs: list[tuple[int, int]]
    draft: Tree | None = None
    hidden: range = range(0)
    """The rows of the step's last hidden states that belong to it."""
    skipped: Many[Skipped] = ()
    """What its rows do not visit, of each group of layers; empty where they visit all."""
    gated: Many[Run] = ()
    """Which sublayers its rows skip, neighbours that skip the same together; empty where none."""
    deep: Deep | None = None
    """Which passes its rows took, of a model whose rows may leave some out; `gated` says it too."""
    spared: Ints | None = None
    """(layers, rows) how many neurons of a layer's feed-forward a row ran, as it was decided while
    it was computed: -1 for none, 0 for all. None if nothing was decided."""

    @property
    def end(self) -> int:
        """The cell after its last row's."""
        first, rows = self.runs[-1]
        return first + rows

    @property
    def head_rows(self) -> int:
        """Rows that the head computes for it."""
        if self.argmax is None:
            return len(self.logits)
        return len(self.logits) + (1 if self.draft is None else 1 + len(self.draft))

    def logits_row(self, number: int) -> int:
        """Which of the step's logits belongs to the last row before the draft (`ROOT`), or to
        token `number` of the draft."""
        return self.logits[-1] if self.draft is None else self.logits.start + 1 + number

    def argmax_row(self, number: int) -> int | None:
        """The same among the step's argmaxes; None if the token is to be drawn."""
        return None if self.argmax is None else self.argmax + 1 + number

    def sampling_rows(self, given: int) -> slice:
        """Where its last row and its draft stand among the rows that the head computes, of which
        the first `given` want logits."""
        count = 1 if self.draft is None else 1 + len(self.draft)
        first = self.logits.stop - count if self.argmax is None else given + self.argmax
        return slice(first, first + count)
