"""Hand-built steps: the smallest thing that can drive a backend without the engine.

Pages are handed out in a shuffled order, so that slots never equal positions, and pages that fall
out of a window are taken away and overwritten with NaN, so that reading one shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ockham.core.seams import SequencePattern
from ockham.core.step import GroupRows, Step, StepOutput, Tables
from ockham.engine.visiting import put_choices, put_visits
from ockham.model.loading import LoadedModel


@dataclass
class Part:
    """Rows of one sequence: a chain, or with `parents` (-1: the committed text) a draft tree."""

    sequence: int
    tokens: Sequence[int]
    parents: Sequence[int] | None = None
    embeddings: np.ndarray | None = None  # (len(tokens), hidden) instead of the tokens
    drafted: int = 0  # of a chain, the last tokens, which are not committed


@dataclass
class _State:
    tables: list[list[int]]
    length: int = 0


@dataclass
class Stepper:
    """Runs steps of a loaded model over page tables of its own."""

    model: LoadedModel
    seed: int = 0
    pattern: SequencePattern | None = None
    """What the rows of every sequence visit."""
    sequences: dict[int, _State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backend, layouts = self.model.backend, self.model.layouts
        self.planes = backend.allocate(layouts)
        self.executor = backend.bind(self.model.program, self.planes)
        rng = np.random.default_rng(self.seed)
        self.free = [rng.permutation(layout.pages).tolist() for layout in layouts]

    def step(self, parts: Sequence[Part], **wants: Any) -> StepOutput:
        """Run one step; every row's logits are wanted unless `wants_logits` says otherwise.

        Chains are committed; trees leave their sequence as it was.
        """
        built = self.build(parts, **wants)
        run = self.executor.begin(built)
        self.executor.run(run, 0, len(self.model.program.ops))
        output = self.executor.finish(run)
        for part in parts:
            if part.parents is None:
                self._commit(part)
        return output

    def build(self, parts: Sequence[Part], **wants: Any) -> Step:
        ids, positions, sequence, cells, context = [], [], [], [], []
        extra: list[int] = []
        extra_starts, embedding_of, embeddings = [0], [], []
        bounds = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
        for number, part in enumerate(parts):
            state = self._state(part.sequence)
            self._grow(state, state.length + len(part.tokens))
            depth: list[int] = []
            paths: list[list[int]] = []
            for i, token in enumerate(part.tokens):
                cell = state.length + i
                parent = -1 if part.parents is None else part.parents[i]
                depth.append(
                    i if part.parents is None else 1 + (depth[parent] if parent >= 0 else -1)
                )
                paths.append([*(paths[parent] if parent >= 0 else []), cell])
                ids.append(token)
                positions.append(state.length + depth[i])
                sequence.append(number)
                cells.append(cell)
                context.append(cell + 1 if part.parents is None else state.length)
                extra += [] if part.parents is None else paths[i]
                extra_starts.append(len(extra))
                embedding_of.append(len(embeddings) if part.embeddings is not None else -1)
                if part.embeddings is not None:
                    embeddings.append(part.embeddings[i])
        tables = tuple(self._tables(parts, group) for group in range(len(self.model.layouts)))
        page_tokens, rows = self.model.layouts[0].page_tokens, len(ids)
        of, at = np.array(sequence, np.int32), np.array(cells, np.int32)
        step = Step(
            ids=np.array(ids, np.int32),
            positions=np.array(positions, np.int32),
            sequence=of,
            groups=tuple(
                GroupRows(
                    table,
                    table.slots(of, at, page_tokens),
                    at,
                    np.array(context, np.int32),
                    np.array(extra, np.int32) if extra else None,
                    np.array(extra_starts, np.int32) if extra else None,
                )
                for table in tables
            ),
            page_tokens=page_tokens,
            wants_logits=np.array(wants.pop("wants_logits", range(rows)), np.int32),
            wants_argmax=np.array(wants.pop("wants_argmax", []), np.int32),
            seeds=np.zeros(rows, np.uint64),
            embeddings=np.array(embeddings, np.float32) if embeddings else None,
            embedding_of=np.array(embedding_of, np.int32) if embeddings else None,
            **wants,
        )
        if self.pattern is not None:
            of_rows = [(self.pattern, slice(*rows)) for rows in pairwise(bounds)]
            put_visits(step, of_rows)
            put_choices(step, [(pattern, rows, 0) for pattern, rows in of_rows])
        return step

    def _state(self, sequence: int) -> _State:
        return self.sequences.setdefault(sequence, _State([[] for _ in self.model.layouts]))

    def _grow(self, state: _State, length: int) -> None:
        for group, layout in enumerate(self.model.layouts):
            while len(state.tables[group]) * layout.page_tokens < length:
                state.tables[group].append(self.free[group].pop())

    def _tables(self, parts: Sequence[Part], group: int) -> Tables:
        lists = [self._state(part.sequence).tables[group] for part in parts]
        starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
        return Tables(np.array([p for pages in lists for p in pages], np.int32), starts)

    def _commit(self, part: Part) -> None:
        state = self._state(part.sequence)
        state.length += len(part.tokens) - part.drafted
        for group, layout in enumerate(self.model.layouts):
            if layout.window is None:
                continue
            first_seen = max(0, state.length + 1 - layout.window)
            for page in range(first_seen // layout.page_tokens):
                self._let_go(state, group, page)

    def _let_go(self, state: _State, group: int, page: int) -> None:
        layout, held = self.model.layouts[group], state.tables[group][page]
        if held < 0:
            return
        slots = np.arange(layout.page_rows) + held * layout.page_rows
        poison = self.planes.read(group, slots)
        bits = {"uint16": 0x7FC0, "uint8": 0xFF}  # a scale of such bytes is NaN
        poison[...] = bits.get(poison.dtype.name, np.nan)
        self.planes.write(group, slots, poison)
        state.tables[group][page] = -1


def prompt_logits(
    model: LoadedModel, prompts: Sequence[Sequence[int]], chunk: int
) -> list[np.ndarray]:
    """Every position's logits of a ragged batch, prefilled `chunk` tokens a step: (T, V) each."""
    stepper = Stepper(model)
    found: list[list[np.ndarray]] = [[] for _ in prompts]
    for start in range(0, max(map(len, prompts)), chunk):
        parts = [
            Part(i, prompt[start : start + chunk])
            for i, prompt in enumerate(prompts)
            if start < len(prompt)
        ]
        logits = stepper.step(parts).logits
        for part in parts:
            found[part.sequence].append(logits[: len(part.tokens)])
            logits = logits[len(part.tokens) :]
    return [np.concatenate(rows) for rows in found]
