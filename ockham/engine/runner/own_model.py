"""The engine's model, as far as drafters run parts of it between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ockham.cache.state import State, View
from ockham.core.cost import ATTENTION, Skips
from ockham.core.rows import Branch, build_step
from ockham.core.seams import Likely
from ockham.core.step import Floats, Ints, Step, StepOutput, Tables
from ockham.engine.gates import OpenGate, active_rows, runs_of_rows
from ockham.kernels.base import Executor
from ockham.kernels.ops import Attend, Program
from ockham.kernels.sampling import Draw

HEAD = "head"


class OwnModel:
    """See `core.seams.OwnModel`. A sequence has at most `longest` tokens, and a step `most_rows`
    rows. `reserve` is how cells of drafts are reserved, `gates` gives the gates of views'
    sequences, by the views' ids, where they have any, and `tokenizer` gives the digest of a
    tokenizer."""

    def __init__(
        self,
        program: Program,
        executor: Executor,
        state: State,
        hidden_size: int,
        vocabulary: int,
        longest: int,
        most_rows: int,
        reserve: Callable[[View, int], bool],
        gates: Callable[[], Mapping[int, OpenGate]],
        tokenizer: Callable[[], str | None],
    ) -> None:
        self.hidden_size, self.vocabulary = hidden_size, vocabulary
        self._recurs = any(layout.spec.ends for layout in state.groups)
        self.layers = sum(name.endswith(".before") for name in program.breakpoints)
        self.wrote = False
        """Whether cells were reserved or written since this was last made false."""
        self._program, self._executor, self._state = program, executor, state
        self._longest, self._most_rows = longest, most_rows
        self._reserve, self._gates, self._tokenizer = reserve, gates, tokenizer
        self._sublayers = program.sublayers()
        read = {op.reads for op in program.ops if isinstance(op, Attend)}
        self.sublayers = tuple(
            [each for each in self._sublayers if each[1] != ATTENTION or each[0] not in read]
        )
        self._wide = [place for place, op in enumerate(program.ops) if op.neurons]
        self.neurons = tuple(program.ops[place].neurons for place in self._wide)

    @property
    def tokenizer(self) -> str | None:
        return self._tokenizer()

    def embed(self, tokens: Sequence[int]) -> Floats:
        """What stands in the residual stream before the first layer: (tokens, hidden_size)."""
        step = self._nowhere(np.array(tokens, np.int32), 0)
        run = self._executor.begin(step)
        self._executor.run(run, 0, 1)
        x: Floats = np.array(run.x, np.float32)
        return x

    def head(self, x: Floats, count: int) -> Likely:
        step = self._nowhere(np.zeros(len(x), np.int32), count)
        step.embeddings = np.ascontiguousarray(x, np.float32)
        step.embedding_of = np.arange(len(x), dtype=np.int32)
        run = self._executor.begin(step)
        self._executor.run(run, 0, 1)  # takes the rows of x as they are
        self._executor.run(run, self._program.breakpoints[HEAD], len(self._program.ops))
        output = self._executor.finish(run)
        return Likely(output.logits, output.candidates)

    def partly(
        self,
        rows: Sequence[tuple[View, int, int]],
        skips: Sequence[Skips],
        count: int,
        leave: Callable[[Floats], Floats] | None = None,
        leading: Sequence[int] | None = None,
    ) -> Likely:
        self.wrote = True
        views = [view for view, _, _ in rows]
        owner = np.arange(len(rows), dtype=np.int32)
        step = build_step(
            np.array([token for _, _, token in rows], np.int32),
            np.array([place for _, place, _ in rows], np.int32),
            owner,
            self._state.tables(views),
            self._state.page_tokens,
            dropped=self._state.dropped(views),
            wants_logits=owner,
            candidates=count,
        )
        if leading is not None:
            step.leading = dict(zip(self._wide, leading, strict=True))
        output = self._run(step, views, skips, 1, leave)
        return Likely(output.logits, output.candidates)

    def foretold(
        self, view: View, tokens: Sequence[int], skips: Sequence[Skips]
    ) -> list[list[int]] | None:
        count, end = len(tokens), view.tokens
        start, last = end - count, end + count * len(skips)
        if view.compacted_at or any(held.let_go for held in view.groups):
            return None
        if self._recurs:  # what their states were before those tokens is not kept
            return None
        if last > self._longest or last - end > self._most_rows or not self.reserve(view, last):
            return None
        places = np.arange(end, last, dtype=np.int32)
        rows = np.arange(len(places), dtype=np.int32)
        branches = [
            Branch(row, start, range(end + row - row % count, end + row)) for row in rows.tolist()
        ]
        step = build_step(
            np.array([*tokens] * len(skips), np.int32),
            places,
            np.zeros(len(places), np.int32),
            self._state.tables([view]),
            self._state.page_tokens,
            branches=branches,
            wants_argmax=rows,
        )
        said = self._run(step, [view] * len(skips), skips, count).argmax
        return [said[at : at + count] for at in range(0, len(said), count)]

    def _run(
        self,
        step: Step,
        views: Sequence[View],
        skips: Sequence[Skips],
        count: int,
        leave: Callable[[Floats], Floats] | None = None,
    ) -> StepOutput:
        """Run rows, `count` of each view, without `skips` and what the view's gate skips in any
        case, as far as some sublayer is run, and then the head."""
        gates = self._gates()
        ways: list[Skips] = []
        counts: list[int] = []
        for number, (view, left_out) in enumerate(zip(views, skips, strict=True)):
            places = step.positions[number * count : (number + 1) * count]
            for gated, rows in runs_of_rows(gates.get(id(view)), places):
                ways.append(left_out | gated)
                counts.append(rows)
        step.active = active_rows(ways, counts, self._sublayers)
        skipped = frozenset.intersection(*ways)
        stops = [ops.stop for each, ops in self._sublayers.items() if each not in skipped]
        first = min(ops.start for ops in self._sublayers.values())
        run = self._executor.begin(step)
        self._executor.run(run, 0, max(stops, default=first))
        if leave is not None:
            run.x = leave(run.x)
        self._executor.run(run, self._program.breakpoints[HEAD], len(self._program.ops))
        return self._executor.finish(run)

    def reserve(self, view: View, cells: int) -> bool:
        self.wrote = True
        return self._reserve(view, cells)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[int | None]:
        return [drawn.token for drawn in self._executor.sample(logits, draws)]

    def _nowhere(self, ids: Ints, count: int) -> Step:
        """A step of rows that see nothing and write nothing, and of each of which logits and the
        `count` likeliest tokens are wanted."""
        groups = len(self._state.groups)
        zeros = np.zeros(len(ids), np.int32)
        return build_step(
            ids,
            zeros,
            zeros,
            (Tables(np.empty(0, np.int32), np.zeros(2, np.int32)),) * groups,
            self._state.page_tokens,
            slots=(np.zeros(len(ids), np.int64),) * groups,
            wants_logits=np.arange(len(ids), dtype=np.int32),
            candidates=count,
        )
