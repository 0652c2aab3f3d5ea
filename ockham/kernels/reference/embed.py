"""The embedding of tokens in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import Embed
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(Embed)
def compute(run: ReferenceRun, op: Embed) -> None:
    step = run.step
    if step.embeddings is None or step.embedding_of is None:
        run.x = op.table.rows(step.ids) * np.float32(op.scale)
    else:
        own = step.embedding_of >= 0
        run.x = op.table.rows(np.where(own, 0, step.ids)) * np.float32(op.scale)
        run.x[own] = step.embeddings[step.embedding_of[own]]
    if op.positions is not None:
        kinds, places = np.divmod(step.positions, np.int32(op.positions.out_features))
        if op.types is not None:
            run.x = run.x + op.types.rows(kinds)
        run.x = run.x + op.positions.rows(places)
    run.x = normalise(run.x, op.norm)
    run.keep_hidden(-1)
