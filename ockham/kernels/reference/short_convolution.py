"""The gated short convolution in NumPy."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.step import GroupRows
from ockham.kernels.ops.short_convolution import ShortConvolution
from ockham.kernels.reference.formulas import normalise
from ockham.kernels.reference.run import ReferenceRun, twin


@twin(ShortConvolution)
def compute(run: ReferenceRun, op: ShortConvolution) -> None:
    projected = run.product(op, "inputs", normalise(run.of_active(run.x), op.norm))
    if op.inputs_bias is not None:
        projected += op.inputs_bias
    if op.activated:
        u, c = np.split(projected, 2, axis=1)
    else:
        b, c, v = np.split(projected, 3, axis=1)
        u = b * v
    run.planes.store_rows(op.layer, run.of_active(run.step.groups[op.group].slots), u)
    y = _convolved(run, op, u)
    if op.bias is not None:
        y = y + op.bias
    if op.activated:
        y = y / (1 + np.exp(-y))
    branch = run.product(op, "out", c * y)
    if op.out_bias is not None:
        branch += op.out_bias
    run.add(branch, None, op.residual_scale)


def _convolved(run: ReferenceRun, op: ShortConvolution, made: Floats) -> Floats:
    """The sums over what each active row looks back at, (A, D), which is among what the step
    `made`, or in pages."""
    step, rows = run.step, run.step.groups[op.group]
    active = np.arange(step.rows) if run.active is None else run.active
    own = {(int(step.sequence[row]), int(rows.cells[row])): made[i] for i, row in enumerate(active)}
    stored, codec = run.planes.layer(op.layer)[0]
    weight = op.weight.reshape(op.length, -1)
    y: Floats = np.empty_like(made)
    for i, row in enumerate(active.tolist()):
        sequence, terms = int(step.sequence[row]), []
        for cell in cells_seen(rows, row)[-op.length :]:
            u = own.get((sequence, cell))
            if u is None:
                page = int(
                    rows.tables.pages[rows.tables.starts[sequence] + cell // step.page_tokens]
                )
                assert page >= 0, "what a row looks back at is held"
                u = codec.widen(stored[page, cell % step.page_tokens])[0]
            terms.append(u)
        y[i] = weight[-len(terms)] * terms[0]
        for w, u in zip(weight[len(weight) - len(terms) + 1 :], terms[1:], strict=True):
            y[i] += w * u
    return y


def cells_seen(rows: GroupRows, row: int) -> list[int]:
    """The cells that a row sees, the oldest first."""
    cells = list(range(int(rows.context[row])))
    if rows.extra is None or rows.extra_starts is None:
        return cells
    extra: list[int] = rows.extra[rows.extra_starts[row] : rows.extra_starts[row + 1]].tolist()
    return cells + extra
