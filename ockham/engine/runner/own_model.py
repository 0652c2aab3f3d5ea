"""The engine's model, as far as drafters run parts of it between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ockham.cache.state import State, View
from ockham.core.cost import RUNS_ALL, Skips
from ockham.core.rows import build_step
from ockham.core.seams import Likely
from ockham.core.step import Floats, Ints, Step, Tables
from ockham.engine.gates import active_rows
from ockham.kernels.base import Executor
from ockham.kernels.ops import Program
from ockham.kernels.sampling import Draw

HEAD = "head"


class OwnModel:
    """See `core.seams.OwnModel`. `reserve` is how cells of drafts are reserved,
    `skips` gives what the rows of views skip, by the views' ids, where they skip anything, and
    `tokenizer` gives the digest of a tokenizer."""

    def __init__(
        self,
        program: Program,
        executor: Executor,
        state: State,
        hidden_size: int,
        vocabulary: int,
        reserve: Callable[[View, int], bool],
        skips: Callable[[], Mapping[int, Skips]],
        tokenizer: Callable[[], str | None],
    ) -> None:
        self.hidden_size, self.vocabulary = hidden_size, vocabulary
        self.layers = sum(name.endswith(".before") for name in program.breakpoints)
        self.wrote = False
        """Whether cells were reserved or written since this was last made false."""
        self._program, self._executor, self._state = program, executor, state
        self._reserve, self._skips, self._tokenizer = reserve, skips, tokenizer
        self._sublayers = program.sublayers()

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

    def early(
        self,
        rows: Sequence[tuple[View, int, int]],
        layers: int,
        leave: Callable[[Floats], Floats],
        count: int,
    ) -> Likely:
        self.wrote = True
        ids = np.array([token for _, _, token in rows], np.int32)
        places = np.array([place for _, place, _ in rows], np.int32)
        views = [view for view, _, _ in rows]
        step = build_step(
            ids,
            places,
            np.arange(len(rows), dtype=np.int32),
            self._state.tables(views),
            self._state.page_tokens,
            dropped=self._state.dropped(views),
            wants_logits=np.arange(len(rows), dtype=np.int32),
            candidates=count,
        )
        skips = self._skips()
        if skips:
            of_rows = [skips.get(id(view), RUNS_ALL) for view, _, _ in rows]
            step.active = active_rows(of_rows, [1] * len(rows), self._sublayers)
        run = self._executor.begin(step)
        self._executor.run(run, 0, self._program.breakpoints[f"layer.{layers - 1}.after"])
        run.x = leave(run.x)
        self._executor.run(run, self._program.breakpoints[HEAD], len(self._program.ops))
        output = self._executor.finish(run)
        return Likely(output.logits, output.candidates)

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
