"""What each layer is given of a token, in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.kernels.ops import LayerInputs
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(LayerInputs)
def compute(run: ReferenceRun, op: LayerInputs) -> None:
    step, ids = run.step, run.step.ids
    if step.embedding_of is not None:
        ids = np.where(step.embedding_of >= 0, np.int32(op.padding), ids)
    projected = op.projection.matmul(run.x) * np.float32(op.projection_scale)
    normed = normalise(projected.reshape(step.rows, -1, op.width), op.norm)
    looked_up = op.table.rows(ids) * np.float32(op.table_scale)
    run.layer_inputs = (normed.reshape(step.rows, -1) + looked_up) * np.float32(op.scale)
