"""The branch of a layer's own inputs in NumPy."""

from __future__ import annotations

from ockham.kernels.ops import LayerInputBranch
from ockham.kernels.reference.formulas import activated
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(LayerInputBranch)
def compute(run: ReferenceRun, op: LayerInputBranch) -> None:
    gates = activated(run.product(op, "input_gate", run.of_active(run.x)), op.activation)
    own = run.of_active(run.layer_inputs)[:, op.first : op.first + op.input_gate.out_features]
    run.add(run.product(op, "input_projection", gates * own), op.norm, 1.0)
    run.keep_hidden(op.layer)
