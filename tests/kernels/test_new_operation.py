"""An operation is its own files: a record with its contract, and its twins. Nothing lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ockham.core.arrays import Floats
from ockham.core.cost import FEED_FORWARD, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.backends import find_backend
from ockham.kernels.ops import Operation, Program, StepSizes, workspace_bytes
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.reference.run import ReferenceRun, twin
from ockham.model.program.costs import cost_of
from tests.helpers.programs import Shape, layouts_of, on
from tests.helpers.steps import Part, Stepper


@dataclass(frozen=True, slots=True, eq=False)
class Shift(Operation):
    """x += mixed(x) + shift."""

    layer: int
    mixed: Linear  # (D, D)
    shift: Floats  # (D,)

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, FEED_FORWARD

    def matrices(self) -> dict[str, Linear]:
        return {"mixed": self.mixed}

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        return {"shifted": 7 * sizes.rows}


@twin(Shift)
def compute(run: ReferenceRun, op: Shift) -> None:
    run.add(op.mixed.matmul(run.x) + op.shift, None, 1.0)


def shifted(program: Program, place: int) -> tuple[Program, Shift]:
    square = next(op for op in program.ops if type(op).__name__ == "AttentionOutput")
    op = Shift(0, square.matrices()["out"], np.full(64, 0.5, np.float32))
    return Program((*program.ops[:place], op, *program.ops[place:])), op


SQUARE = Shape(hidden=64)


def test_an_operation_from_another_file_runs_in_a_program() -> None:
    model = on(ReferenceBackend(), SQUARE)
    program, op = shifted(model.program, 5)
    part = [Part(0, [3, 1, 4])]
    plain, changed = Stepper(model), Stepper(replace(model, program=program))
    before, after = plain.step(part).logits, changed.step(part).logits
    assert before.shape == after.shape
    assert not np.array_equal(before, after)
    assert program.matrices()["layer.0.mixed"] is op.mixed


def test_its_cost_and_its_memory_are_counted() -> None:
    model = on(ReferenceBackend(), SQUARE)
    program, op = shifted(model.program, 5)
    plain, more = (cost_of(each, layouts_of(SQUARE)) for each in (model.program, program))
    assert more.linear_flops - plain.linear_flops == 2 * 64 * 64
    assert more.dense_weight_bytes - plain.dense_weight_bytes == op.mixed.nbytes
    sizes = StepSizes(rows=10, head_rows=1, max_model_len=100)
    extra = workspace_bytes(program, sizes) - workspace_bytes(model.program, sizes)
    assert extra == 4 * 7 * 10


def test_a_backend_without_its_twin_says_so() -> None:
    model = on(find_backend("cpu", 1), SQUARE)
    program, _ = shifted(model.program, 5)
    with pytest.raises(ValueError, match="does not know the operation Shift"):
        Stepper(replace(model, program=program))


def test_every_matrix_of_a_program_has_a_role() -> None:
    program = on(ReferenceBackend(), Shape(experts=3, shared=True, shared_gate=True)).program
    roles = program.matrices()
    assert {role for role in roles if role.startswith("layer.1.")} == {
        "layer.1.qkv",
        "layer.1.out",
        "layer.1.router",
        *(f"layer.1.experts.{j}.{name}" for j in range(3) for name in ("gate_up", "down")),
        "layer.1.shared.gate_up",
        "layer.1.shared.down",
        "layer.1.shared.gate",
    }
    assert {role for role in roles if not role.startswith("layer.")} == {"embedding", "head"}
