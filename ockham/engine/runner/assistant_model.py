"""An assistant of the engine's model, which reads that model's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ockham.cache.state import State, View
from ockham.core.arrays import Doubles, Floats, Longs
from ockham.core.rows import build_step
from ockham.core.seams import Foreseen, Rows, Target
from ockham.engine.runner.small_model import ROWS
from ockham.kernels.base import Backend
from ockham.kernels.sampling import Draw
from ockham.model.draft_heads.assistant import Assistant

_NEVER = np.float32(-1e30)
"""The logit of a token that an assistant does not know."""


@dataclass(slots=True)
class NoState:
    """The view of what keeps nothing."""

    tokens: int = 0


class AssistantModel:
    """See `core.seams.HeadModel`; it `shares` the state of the engine's model."""

    shares = True
    layer_parallel = 1

    def __init__(
        self, assistant: Assistant, backend: Backend, state: State, target: Target
    ) -> None:
        self.longest, self.most_rows = target.max_model_len, ROWS
        self.directory, self.hidden_size = assistant.directory, assistant.hidden_size
        self.layers: Sequence[int] = assistant.layers
        self._assistant, self._state = assistant, state
        self._vocabulary = target.vocabulary
        self._executor = backend.bind(assistant.program, state.planes)
        self._operations = len(assistant.program.ops)

    def open(self) -> NoState:
        return NoState()

    def reserve(self, view: Any, cells: int) -> bool:
        return True

    def truncate(self, view: Any, cells: int) -> None:
        return

    def move(self, view: Any, source: Sequence[int], target: Sequence[int]) -> None:
        return

    def release(self, view: Any) -> None:
        return

    def slide(self, view: Any) -> None:
        return

    def bytes(self, view: Any) -> int:
        return 0

    def carry(self, states: Sequence[Floats]) -> Floats:
        return self._assistant.carry(states)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[int | None]:
        return [drawn.token for drawn in self._executor.sample(logits, draws)]

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return self._executor.noise(seed, stream, position, tokens)

    def run(self, chunks: Sequence[Rows], likely: int, hidden: bool = False) -> Foreseen:
        """Rows of sequences whose views in the engine's model are given. Each sees all cells of its
        sequence, stands in the place behind them, and writes nothing."""
        views: list[View] = [chunk.view for chunk in chunks for _ in chunk.tokens]
        beside = np.concatenate([chunk.beside for chunk in chunks if chunk.beside is not None])
        every = np.arange(len(views), dtype=np.int32)
        step = build_step(
            np.array([token for chunk in chunks for token in chunk.tokens], np.int32),
            np.array([view.tokens - 1 for view in views], np.int32),
            every,
            self._state.tables(views),
            self._state.page_tokens,
            dropped=self._state.dropped(views),
        )
        step.positions += 1
        own = self._assistant
        if own.clusters is None:
            step.wants_logits, step.candidates = every, likely
        step.wants_hidden = {own.last_layer: every}
        step.embeddings = np.ascontiguousarray(own.inputs(step.ids, beside), np.float32)
        step.embedding_of = every
        run = self._executor.begin(step)
        self._executor.run(run, 0, self._operations)
        output = self._executor.finish(run)
        x = own.normed(output.hidden[own.last_layer])
        if own.clusters is None:
            return Foreseen(output.logits, output.candidates, own.behind(x))
        tokens, known = own.clusters.nearest(x)
        logits = np.full((len(x), self._vocabulary), _NEVER, np.float32)
        np.put_along_axis(logits, tokens, known, axis=1)
        order = np.lexsort((tokens, -known), axis=1)[:, :likely]
        return Foreseen(logits, np.take_along_axis(tokens, order, axis=1), own.behind(x))
