"""A small draft model that takes the time of a larger one: the lab's is smaller than real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.config import EngineConfig
from ockham.core.seams import AdapterDtype, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.draft.modelled.drafting import ModelDrafting
from ockham.engine.runner.small_model import SmallModel
from ockham.kernels.base import Executor, Run
from ockham.kernels.sampling import Draw, Drawn
from ockham.model.loading import load_model, plan_model


class Charged:
    """An executor that runs every step in another model too: it says what the one says, and takes
    the time of both. So a small draft model can be charged at the size that a real one has.

    The other's program is over state of the same pages."""

    def __init__(self, executor: Executor, other: Executor, operations: int) -> None:
        self._executor, self._other, self._operations = executor, other, operations

    def begin(self, step: Step) -> Run:
        return self._executor.begin(step)

    def run(self, run: Run, start: int, stop: int) -> None:
        self._executor.run(run, start, stop)

    def finish(self, run: Run) -> StepOutput:
        other = self._other.begin(run.step)
        self._other.run(other, 0, self._operations)
        self._other.finish(other)
        return self._executor.finish(run)

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        return self._executor.pack_adapter(sums, dtype)

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        self._executor.reposition(group, source, target, shifts)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        return self._executor.sample(logits, draws)

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return self._executor.noise(seed, stream, position, tokens)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        return self._executor.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        return self._executor.token_scores(logits, rows, tokens, top)


def charge(drafter: ModelDrafting, model: str) -> None:
    """From now on a draft model's steps take the time of `model`'s too."""
    small = cast(SmallModel, drafter.model)
    pages, page_tokens = small.state.groups[0].pages, small.state.page_tokens
    settings = {"model": model, "max_model_len": 1, "max_num_seqs": 1, "block_size": page_tokens}
    planned = plan_model(msgspec.convert(settings, EngineConfig))
    (layout,) = planned.plan.layouts(planned.description)
    settings |= {
        "max_model_len": small.longest,
        "max_num_batched_tokens": small.most_rows,
        "kv_cache_memory_bytes": pages * page_tokens * layout.cell_bytes,
    }
    loaded = load_model(msgspec.convert(settings, EngineConfig))
    planes = loaded.backend.allocate(loaded.layouts)
    other = loaded.backend.bind(loaded.program, planes)
    small.executor = Charged(small.executor, other, len(loaded.program.ops))
