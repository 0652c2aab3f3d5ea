"""A block that was trained to draft for the engine's model, with a state of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.cache.state import State, View
from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.seams import Foreseen, Rows, Target
from ockham.core.speculative import MOST_TOKENS
from ockham.engine.runner.assistant_model import AssistantModel
from ockham.engine.runner.small_model import ROWS, SecondModel
from ockham.model.draft_heads.assistant import load_assistant, open_assistant
from ockham.model.draft_heads.eagle3 import load_eagle3
from ockham.model.draft_heads.head import DraftHead
from ockham.model.draft_heads.mtp import load_mtp
from ockham.model.hub import DRAFTERS, resolve
from ockham.model.loading import LoadedModel

_LOADERS = {"mtp": load_mtp, "eagle3": load_eagle3}
"""By the form in which a block is published."""
_NEVER = np.float32(-1e30)
"""The logit of a token that the block does not know."""


def load_head(
    form: str,
    model: str | None,
    context: int,
    *,
    config: EngineConfig,
    own: LoadedModel,
    target: Target,
    state: State,
) -> HeadModel | AssistantModel:
    """See `core.seams.LoadHead`. `state` is that of the engine's model."""
    if form == "mtp" and model is not None and model not in DRAFTERS:
        opened = open_assistant(resolve(model))
        if opened is not None:
            try:
                assistant = load_assistant(config, own, opened)
            finally:
                opened.source.close()
            return AssistantModel(assistant, own.backend, state, target)
    return HeadModel(form, model, context, config, own, target)


class HeadModel(SecondModel):
    """See `core.seams.HeadModel`: the block of a published `form`, whose rows see `context` tokens.
    Raises as `LoadHead` says."""

    shares = False

    def __init__(
        self,
        form: str,
        model: str | None,
        context: int,
        config: EngineConfig,
        own: LoadedModel,
        target: Target,
    ) -> None:
        page = own.plan.page_tokens
        # What is read when drafting goes on may be as long as what is held already.
        cells = min(target.max_model_len, 2 * context) + MOST_TOKENS
        pages = target.sequences * (-(-cells // page) + 2) + -(-ROWS // page)
        head: DraftHead = _LOADERS[form](config, own, model, context, pages)
        super().__init__(
            head.program,
            own.backend,
            head.layouts,
            longest=head.longest,
            last_layer=head.last_layer,
            numerics_id=own.numerics_id,
            directory=head.directory,
            hidden_size=head.hidden_size,
        )
        self.layers: Sequence[int] = head.layers
        self._arithmetic, self._tokens = head.arithmetic, head.tokens
        self._vocabulary = target.vocabulary

    def carry(self, states: Sequence[Floats]) -> Floats:
        return self._arithmetic.carry(states)

    def slide(self, view: View) -> None:
        self.state.slide(view)

    def run(self, chunks: Sequence[Rows], likely: int, hidden: bool = False) -> Foreseen:
        step = self._step(chunks)
        step.candidates = likely
        step.wants_hidden = {self._last_layer: step.wants_logits}
        beside = [chunk.beside for chunk in chunks if chunk.beside is not None]
        inputs = self._arithmetic.inputs(step.ids, np.concatenate(beside))
        step.embeddings = np.ascontiguousarray(inputs, np.float32)
        step.embedding_of = np.arange(step.rows, dtype=np.int32)
        run = self.executor.begin(step)
        self.executor.run(run, 0, self._operations)
        output = self.executor.finish(run)
        self._advance(chunks)
        passed = self._arithmetic.passed(output.hidden[self._last_layer])
        if self._tokens is None:
            return Foreseen(output.logits, output.candidates, passed)
        logits = np.full((len(output.logits), self._vocabulary), _NEVER, np.float32)
        logits[:, self._tokens] = output.logits
        likely_ones = np.where(output.candidates < 0, -1, self._tokens[output.candidates])
        return Foreseen(logits, likely_ones.astype(np.int32), passed)
