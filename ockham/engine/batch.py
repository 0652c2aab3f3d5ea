"""From the chunks of a plan to a step, and from a step's logits back to the chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ockham.cache.state import State
from ockham.core.step import Step
from ockham.engine.scheduler import Chunk
from ockham.engine.sequence import Sequence


@dataclass(slots=True)
class Part:
    """One chunk of a step: `start` is its first row's cell, `logits` the rows of the step's logits
    that belong to it, of which the first is wanted by row `first_wanted` of the chunk. `samples`
    says whether its last row chooses the next token; `argmax` is which of the step's argmaxes that
    is, None if the token is to be drawn from the last of its logits."""

    sequence: Sequence
    start: int
    rows: int
    logits: range
    first_wanted: int
    samples: bool
    argmax: int | None

    @property
    def head_rows(self) -> int:
        """Rows that the head computes for it."""
        return len(self.logits) + (self.argmax is not None)


@dataclass(slots=True)
class Batch:
    step: Step
    parts: list[Part]


def build(chunks: list[Chunk], state: State) -> Batch:
    """The step that computes `chunks`, whose cells are reserved."""
    sequences = [chunk.sequence for chunk in chunks]
    views = [s.view for s in sequences if s.view is not None]
    counts = np.array([chunk.rows for chunk in chunks], np.int32)
    starts = np.array([s.computed for s in sequences], np.int32)
    first_rows = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=first_rows[1:])
    rows = int(first_rows[-1])

    owner = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    cells = np.arange(rows, dtype=np.int32) + np.repeat(starts - first_rows[:-1], counts)
    ids = np.empty(rows, np.int32)
    parts: list[Part] = []
    wanted: list[int] = []
    argmax: list[int] = []
    for chunk, sequence, row in zip(chunks, sequences, first_rows.tolist(), strict=False):
        ids[row : row + chunk.rows] = sequence.tokens[
            sequence.computed : sequence.computed + chunk.rows
        ]
        wants = sequence.wanted_logits(chunk.rows)
        samples = chunk.rows == sequence.remaining and not sequence.scores_only
        greedy = samples and sequence.greedy
        if greedy:
            wants = wants[:-1]
        parts.append(
            Part(
                sequence,
                sequence.computed,
                chunk.rows,
                range(len(wanted), len(wanted) + len(wants)),
                wants.start,
                samples,
                len(argmax) if greedy else None,
            )
        )
        wanted.extend(range(row + wants.start, row + wants.stop))
        if greedy:
            argmax.append(row + chunk.rows - 1)

    tables = state.tables(views)
    step = Step(
        ids=ids,
        positions=cells,
        sequence=owner,
        cells=cells,
        context=cells + 1,
        tables=tables,
        slots=tuple(table.slots(owner, cells, state.page_tokens) for table in tables),
        page_tokens=state.page_tokens,
        wants_logits=np.array(wanted, np.int32),
        wants_argmax=np.array(argmax, np.int32),
        adapters=np.full(rows, -1, np.int32),
        seeds=np.repeat(np.array([s.seed for s in sequences], np.uint64), counts),
        streams=np.repeat(np.array([s.index for s in sequences], np.uint32), counts),
        keep=np.ones(rows, np.bool_),
    )
    return Batch(step, parts)
