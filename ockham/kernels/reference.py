"""The reference backend: every operation in plain NumPy.

It is the meaning of each operation, the oracle of the compiled kernels' tests, and the way to run
where nothing could be compiled. It promises no bits: BLAS sums in an order that depends on the
number of rows. It knows tensors, never models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.step import Step, StepOutput
from ockham.kernels import sampling
from ockham.kernels.base import Executor, GroupLayout, Planes, Run
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    Experts,
    FeedForward,
    Head,
    Norm,
    Program,
    Rope,
    Route,
)
from ockham.kernels.reference_attention import View, attend, views
from ockham.kernels.reference_math import gated, normalise, rotate, rotation, sigmoid, softcap
from ockham.kernels.reference_planes import ReferencePlanes, widen
from ockham.kernels.sampling import Draw, Drawn

_NOTHING: Floats = np.empty((0, 0), np.float32)


@dataclass(slots=True)
class ReferenceRun:
    """One step under way. `x` (R, hidden) may be read and replaced at a breakpoint."""

    step: Step
    x: Floats = field(default_factory=lambda: _NOTHING)
    q: Floats = field(default_factory=lambda: _NOTHING)  # (R, heads, head_dim)
    a: Floats = field(default_factory=lambda: _NOTHING)  # (R, heads * head_dim)
    h: Floats = field(default_factory=lambda: _NOTHING)  # (R, hidden), the experts' input
    experts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    expert_weights: Floats = field(default_factory=lambda: _NOTHING)
    logits: Floats = field(default_factory=lambda: _NOTHING)
    argmax: list[int] = field(default_factory=list)
    largest: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    candidates: Ints = field(default_factory=lambda: np.empty((0, 0), np.int32))
    hidden: dict[int, Floats] = field(default_factory=dict)
    scores: dict[int, list[Floats]] = field(default_factory=dict)
    score_sums: dict[int, list[Floats]] = field(default_factory=dict)
    views: dict[tuple[int, int | None], list[View]] = field(default_factory=dict)
    rotations: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    def views_of(self, group: int, window: int | None) -> list[View]:
        """What each sequence sees in a group of layers, worked out for the first of them."""
        if (group, window) not in self.views:
            self.views[group, window] = views(self.step, group, window)
        return self.views[group, window]

    def rotation_of(self, rope: Rope) -> tuple[Floats, Floats]:
        """Cosines and sines of the step's rows, shared by the layers that share a rope."""
        if id(rope) not in self.rotations:
            self.rotations[id(rope)] = rotation(rope, self.step.positions)
        return self.rotations[id(rope)]

    def add(self, branch: Floats, post_norm: Norm | None, residual_scale: float) -> None:
        """x += residual_scale * post_norm(branch)."""
        branch = normalise(branch, post_norm)
        self.x = self.x + (branch if residual_scale == 1.0 else branch * np.float32(residual_scale))

    def keep_hidden(self, layer: int) -> None:
        """Copy the rows whose hidden states are wanted after `layer`."""
        rows = self.step.wants_hidden.get(layer)
        if rows is not None:
            self.hidden[layer] = self.x[rows]


class ReferenceExecutor:
    """A program bound to NumPy planes."""

    def __init__(self, program: Program, planes: ReferencePlanes) -> None:
        self.program = program
        self.planes = planes
        self._ropes = {
            op.layer: op.rope for op in program.ops if isinstance(op, AttentionInput) and op.rope
        }
        self._operations: dict[type, Callable[[ReferenceRun, Any], None]] = {
            Embed: self._embed,
            AttentionInput: self._attention_input,
            Attend: self._attend,
            AttentionOutput: self._attention_output,
            FeedForward: self._feed_forward,
            Route: self._route,
            Experts: self._experts,
            Head: self._head,
        }

    def begin(self, step: Step) -> ReferenceRun:
        """Raises ValueError if the step breaks its contract in a way that is cheap to see."""
        _check(step, len(self.planes.groups))
        return ReferenceRun(step)

    def run(self, run: Run, start: int, stop: int) -> None:
        run = _own(run)
        for op in self.program.ops[start:stop]:
            self._operations[type(op)](run, op)

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
        )

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        state = self.planes.read(group, source).copy()
        turned = np.flatnonzero(shifts)
        for index, layer in enumerate(self.planes.groups[group].layers):
            rope = self._ropes.get(layer)
            if rope is not None and len(turned):
                keys = widen(state[index, 0, turned])
                rotate(keys, *rotation(Rope(rope.inverse_frequencies), shifts[turned]))
                state[index, 0, turned] = self.planes.rounded(keys, group)
        self.planes.write(group, target, state)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        return sampling.sample(logits, draws)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int
    ) -> list[dict[int, tuple[float, int]]]:
        return sampling.logprobs(logits, targets, top)

    def _embed(self, run: ReferenceRun, op: Embed) -> None:
        step = run.step
        if step.embeddings is None or step.embedding_of is None:
            run.x = op.table.rows(step.ids) * np.float32(op.scale)
        else:
            own = step.embedding_of >= 0
            run.x = op.table.rows(np.where(own, 0, step.ids)) * np.float32(op.scale)
            run.x[own] = step.embeddings[step.embedding_of[own]]
        run.keep_hidden(-1)

    def _attention_input(self, run: ReferenceRun, op: AttentionInput) -> None:
        rows, heads = run.step.rows, op.heads
        qkv = op.qkv.matmul(normalise(run.x, op.norm))
        if op.bias is not None:
            qkv += op.bias
        q, k, v = np.split(qkv, [heads * op.head_dim, (heads + op.kv_heads) * op.head_dim], axis=1)
        if op.norm_whole:
            q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
        q = q.reshape(rows, heads, op.head_dim)
        k = k.reshape(rows, op.kv_heads, op.head_dim)
        if not op.norm_whole:
            q, k = normalise(q, op.q_norm), normalise(k, op.k_norm)
        if op.rope is not None:
            cos, sin = run.rotation_of(op.rope)
            rotate(q, cos, sin)
            rotate(k, cos, sin)
        run.q = q
        v = v.reshape(rows, op.kv_heads, op.head_dim)
        self.planes.store(op.layer, run.step.groups[op.group].slots, k, v)

    def _attend(self, run: ReferenceRun, op: Attend) -> None:
        step, layer = run.step, op.layer
        by_head, summed = step.wants_scores.get(layer), step.wants_score_sums.get(layer)
        wanted = {row for rows in (by_head, summed) if rows is not None for row in rows.tolist()}
        sequences = run.views_of(op.group, op.window)
        run.a, scores = attend(op, self.planes.layer(layer), run.q, sequences, wanted)
        if by_head is not None:
            run.scores[layer] = [scores[row].sum(axis=1) for row in by_head.tolist()]
        if summed is not None:
            run.score_sums[layer] = [scores[row].sum(axis=(0, 1)) for row in summed.tolist()]

    def _attention_output(self, run: ReferenceRun, op: AttentionOutput) -> None:
        branch = op.out.matmul(run.a)
        if op.bias is not None:
            branch += op.bias
        run.add(branch, op.post_norm, op.residual_scale)

    def _feed_forward(self, run: ReferenceRun, op: FeedForward) -> None:
        gate_up = op.gate_up.matmul(normalise(run.x, op.norm))
        if op.gate_up_bias is not None:
            gate_up += op.gate_up_bias
        branch = op.down.matmul(gated(gate_up, op.activation))
        if op.down_bias is not None:
            branch += op.down_bias
        run.add(branch, op.post_norm, op.residual_scale)
        run.keep_hidden(op.layer)

    def _route(self, run: ReferenceRun, op: Route) -> None:
        run.h = normalise(run.x, op.norm)
        scores = op.router.matmul(run.h)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        run.experts = np.argsort(-weights, axis=1, kind="stable")[:, : op.top_k]
        chosen = np.take_along_axis(weights, run.experts, axis=1)
        run.expert_weights = chosen / chosen.sum(axis=1, keepdims=True) if op.normalise else chosen

    def _experts(self, run: ReferenceRun, op: Experts) -> None:
        h, branch = run.h, np.zeros_like(run.x)
        for expert in np.unique(run.experts).tolist():
            rows, places = np.nonzero(run.experts == expert)
            inner = gated(op.gate_up[expert].matmul(h[rows]), op.activation)
            weights = run.expert_weights[rows, places, None]
            branch[rows] += weights * op.down[expert].matmul(inner)
        if op.shared_gate_up is not None and op.shared_down is not None:
            shared = op.shared_down.matmul(gated(op.shared_gate_up.matmul(h), op.activation))
            if op.shared_gate is not None:
                shared *= sigmoid(op.shared_gate.matmul(h))
            branch += shared
        run.add(branch, op.post_norm, op.residual_scale)
        run.keep_hidden(op.layer)

    def _head(self, run: ReferenceRun, op: Head) -> None:
        step, given = run.step, len(run.step.wants_logits)
        rows = np.concatenate((step.wants_logits, step.wants_argmax))
        logits = op.out.matmul(normalise(run.x[rows], op.norm))
        if op.bias is not None:
            logits += op.bias
        if op.scale != 1.0:
            logits *= np.float32(op.scale)
        logits = softcap(logits, op.softcap)
        run.logits = logits[:given]
        run.argmax = logits[given:].argmax(axis=1).tolist()
        run.largest = logits[given:].max(axis=1)
        run.candidates = _candidates(logits, step.candidates)


def _candidates(logits: Floats, count: int) -> Ints:
    """The `count` largest of each row, the lowest token first on a tie, -1 where there are no
    more: (rows, count)."""
    found: Ints = np.full((len(logits), count), -1, np.int32)
    if count:
        order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        found[:, : order.shape[1]] = order
    return found


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
    panels = False

    def numerics(self) -> str:
        return f"reference-1/numpy-{np.__version__}"

    def allocate(self, groups: Sequence[GroupLayout]) -> ReferencePlanes:
        return ReferencePlanes(groups)

    def bind(self, program: Program, planes: Planes) -> Executor:
        if not isinstance(planes, ReferencePlanes):
            raise TypeError("the reference backend runs over the planes that it allocated itself.")
        return ReferenceExecutor(program, planes)
