"""The reference backend: programs over NumPy planes."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.noise import gumbel
from ockham.core.seams import AdapterDtype, Layout, Linear, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.kernels import sampling
from ockham.kernels.base import Executor, GroupLayout, Planes, Run
from ockham.kernels.layouts import ROWS
from ockham.kernels.ops import AttentionInput, LatentInput, Program, Rope
from ockham.kernels.reference import sparing
from ockham.kernels.reference.adapters import ReferenceAdapter
from ockham.kernels.reference.formulas import rotate, rotation
from ockham.kernels.reference.planes import ReferencePlanes
from ockham.kernels.reference.run import ReferenceRun, twin_of
from ockham.kernels.sampling import Draw, Drawn


class ReferenceExecutor:
    """A program bound to NumPy planes."""

    def __init__(self, program: Program, planes: ReferencePlanes) -> None:
        self.program = program
        self.planes = planes
        self._ropes = {
            op.layer: op.rope
            for op in program.ops
            if isinstance(op, (AttentionInput, LatentInput)) and op.rope
        }

    def begin(self, step: Step) -> ReferenceRun:
        """Raises ValueError if the step breaks its contract in a way that is cheap to see."""
        _check(step, len(self.planes.groups))
        check_leading(step, self.program)
        return ReferenceRun(step, self.planes)

    def run(self, run: Run, start: int, stop: int) -> None:
        run = _own(run)
        for place in range(start, stop):
            op = self.program.ops[place]
            going = run.going if place < run.going_until else None
            run.active = _active(run.step, place) if going is None else going
            run.leading = run.step.leading.get(place)
            for _ in sparing.groups(run, op, place):
                twin_of(op)(run, op)

    def finish(self, run: Run) -> StepOutput:
        run = _own(run)
        sampling.check_finite(run.largest)
        return StepOutput(
            run.logits,
            run.hidden,
            run.scores,
            run.argmax,
            run.largest,
            run.candidates,
            run.score_sums,
            run.recall,
            run.score_totals,
            run.left_out,
            run.queries,
            run.spared.ran,
            run.deep,
        )

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        return ReferenceAdapter(sums, dtype, self.program)

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        state = self.planes.read(group, source).copy()
        turned = np.flatnonzero(shifts)
        for index, layer in enumerate(self.planes.groups[group].layers):
            rope = self._ropes.get(layer)
            if rope is not None and len(turned):
                stored, codec = self.planes.sides(group, index, state[index])[0]
                keys = codec.widen(stored[turned])
                rotate(keys, *rotation(Rope(rope.inverse_frequencies), shifts[turned]))
                stored[turned] = codec.store(keys)
        self.planes.write(group, target, state)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        return sampling.sample(logits, draws)

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return gumbel(seed, stream, position, tokens)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        return sampling.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        return sampling.token_scores(logits, rows, tokens, top)


def check_leading(step: Step, program: Program) -> None:
    """Raises ValueError where a step wants neurons that an operation does not have."""
    for place, count in step.leading.items():
        there = program.ops[place].neurons if 0 <= place < len(program.ops) else 0
        if not 1 <= count <= there:
            raise ValueError(
                f"operation {place} has {there} neurons, and the step wants the first {count} of "
                "them."
            )


def _active(step: Step, place: int) -> Ints | None:
    """The rows that the operation at `place` computes; None for all."""
    return next((each.rows for each in step.active if each.start <= place < each.stop), None)


def _own(run: Run) -> ReferenceRun:
    if not isinstance(run, ReferenceRun):
        raise TypeError("the reference backend runs the steps that it began itself.")
    return run


def _check(step: Step, groups: int) -> None:
    """The cheap part of a step's contract."""
    if len(step.groups) != groups:
        raise ValueError(
            f"the step has rows of {len(step.groups)} groups, and there are {groups} groups of "
            "layers."
        )
    rows = step.rows
    per_row: list[Sized] = [step.positions, step.sequence]
    for group in step.groups:
        per_row += [group.slots, group.cells, group.context]
    if any(len(values) != rows for values in per_row):
        raise ValueError(f"a field of the step does not have one entry for each of {rows} rows.")
    for what, wanted in (
        ("logits are", step.wants_logits),
        ("an argmax is", step.wants_argmax),
    ):
        if len(wanted) and int(wanted[-1]) >= rows:
            raise ValueError(f"{what} wanted of row {wanted[-1]} of {rows} rows.")


class ReferenceBackend:
    """All operations over NumPy arrays."""

    name = "reference"
    layout: Layout = ROWS

    def numerics(self, formats: Collection[str] = ()) -> str:
        return f"reference-1/numpy-{np.__version__}"

    def multiply(self, linear: Linear, x: Floats) -> Floats:
        return linear.matmul(x)

    def allocate(self, groups: Sequence[GroupLayout]) -> ReferencePlanes:
        return ReferencePlanes(groups)

    def bind(self, program: Program, planes: Planes) -> Executor:
        if not isinstance(planes, ReferencePlanes):
            raise TypeError("the reference backend runs over the planes that it allocated itself.")
        return ReferenceExecutor(program, planes)
