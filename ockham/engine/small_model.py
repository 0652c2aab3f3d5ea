"""A second model in the engine, with a state of its own, for a drafter that drafts with one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.cache.state import State, View
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.seams import Target
from ockham.core.speculative import MOST_TOKENS
from ockham.core.step import Floats, Step
from ockham.kernels.sampling import Draw
from ockham.model.loading import load_model, plan_model

ROWS = 512
"""Most rows of a step of it."""


class SmallModel:
    """See `core.seams.SmallModel`. Its state has room for as many tokens as the target's.

    Raises ConfigError if its vocabulary is another than the target's, DoesNotFit if there is no
    memory for it.
    """

    def __init__(self, model: str, target: Target) -> None:
        small = EngineConfig(model=model, max_model_len=1, max_num_seqs=1)
        probed = plan_model(small)
        found = probed.description.vocab_size
        if found != target.vocabulary:
            raise ConfigError(
                f"the draft model {model} has {found} tokens, and the model has "
                f"{target.vocabulary}: their ids cannot mean the same. Choose a draft model with "
                "the same tokenizer."
            )
        self.longest = min(target.max_model_len, probed.description.max_position_embeddings)
        self.most_rows = ROWS
        cell_bytes = sum(each.cell_bytes for each in probed.plan.layouts(probed.description))
        cells = target.cells + (target.sequences + 1) * (small.block_size + MOST_TOKENS)
        loaded = load_model(
            EngineConfig(
                model=model,
                max_model_len=self.longest,
                max_num_seqs=target.sequences,
                max_num_batched_tokens=ROWS,
                kv_cache_memory_bytes=cells * cell_bytes,
            )
        )
        planes = loaded.backend.allocate(loaded.layouts)
        self.executor = loaded.backend.bind(loaded.program, planes)
        self.state = State(planes, loaded.layouts, self.longest, loaded.numerics_id)
        self._operations = len(loaded.program.ops)

    def open(self) -> View:
        return self.state.new_view()

    def reserve(self, view: View, cells: int) -> bool:
        return self.state.reserve(view, cells)

    def truncate(self, view: View, cells: int) -> None:
        if view.length > cells:
            self.state.truncate(view, cells)

    def release(self, view: View) -> None:
        self.state.release(view)

    def bytes(self, view: View) -> int:
        return view.pages * sum(layout.page_bytes for layout in self.state.groups)

    def run(self, chunks: Sequence[tuple[View, list[int]]]) -> Floats:
        counts = np.array([len(tokens) for _, tokens in chunks], np.int32)
        starts = np.array([view.length for view, _ in chunks], np.int32)
        ends = np.cumsum(counts, dtype=np.int32)
        owner = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
        rows, page_tokens = int(ends[-1]), self.state.page_tokens
        cells = np.arange(rows, dtype=np.int32) + np.repeat(starts - ends + counts, counts)
        tables = self.state.tables([view for view, _ in chunks])
        step = Step(
            ids=np.array([token for _, tokens in chunks for token in tokens], np.int32),
            positions=cells,
            sequence=owner,
            cells=cells,
            context=cells + 1,
            tables=tables,
            slots=tuple(table.slots(owner, cells, page_tokens) for table in tables),
            page_tokens=page_tokens,
            wants_logits=ends - 1,
            adapters=np.full(rows, -1, np.int32),
            seeds=np.zeros(rows, np.uint64),
            streams=np.zeros(rows, np.uint32),
            keep=np.ones(rows, np.bool_),
        )
        run = self.executor.begin(step)
        self.executor.run(run, 0, self._operations)
        output = self.executor.finish(run)
        for view, tokens in chunks:
            self.state.advance(view, view.length + len(tokens))
        return output.logits

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[int | None]:
        return [drawn.token for drawn in self.executor.sample(logits, draws)]
