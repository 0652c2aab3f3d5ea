"""Operations compute the active rows of a step only, and those to the same bits as alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ockham.core.step import ActiveRows, RowSets, StepOutput
from ockham.kernels.backends import find_backend
from ockham.kernels.base import Backend
from ockham.kernels.ops import Program
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import SHAPES, Bound, on
from tests.helpers.steps import Part, Stepper

CPU = find_backend("cpu", 2)
STEPS = [
    [Part(0, [3, 1, 4, 1, 5]), Part(1, [9, 2, 6, 5, 3, 5, 8]), Part(2, [7])],
    [Part(0, [2]), Part(1, [11, 13]), Part(2, [17, 19, 23])],
    [Part(0, [31, 37, 41], [-1, 0, -1]), Part(1, [43]), Part(2, [47, 53], [-1, 0])],
]
"""Chunks of prompts, rows that decode, and draft trees."""


def run(stepper: Stepper, parts: list[Part], active: tuple[ActiveRows, ...] = ()) -> StepOutput:
    step = stepper.build(parts, wants_hidden={1: np.arange(sum(len(p.tokens) for p in parts))})
    step.wants_hidden = {k: v.astype(np.int32) for k, v in step.wants_hidden.items()}
    step.active = active
    under_way = stepper.executor.begin(step)
    stepper.executor.run(under_way, 0, len(stepper.model.program.ops))
    output = stepper.executor.finish(under_way)
    for part in parts:
        if part.parents is None:
            stepper._commit(part)
    return output


def without(model: Bound, skipped: set[tuple[int, str]]) -> Bound:
    """The model from which sublayers are taken away."""
    ops = tuple(op for op in model.program.ops if op.sublayer not in skipped)
    return replace(model, program=Program(ops))


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize(
    "skipped",
    [
        {(1, "attention"), (1, "feed_forward")},
        {(0, "feed_forward")},
        {(0, "attention"), (1, "feed_forward")},
    ],
    ids=["layer", "feed-forward", "both kinds"],
)
def test_rows_that_skip_are_those_of_a_model_without_the_sublayers(
    shape: str, skipped: set[tuple[int, str]]
) -> None:
    """Sequence 1 skips, those beside it do not."""
    model = on(CPU, SHAPES[shape])
    if {layer for layer, _ in skipped} == {1} and SHAPES[shape].layers < 2:
        pytest.skip("one layer")
    mixed, whole, smaller = Stepper(model), Stepper(model), Stepper(without(model, skipped))
    for parts in STEPS:
        sizes = [len(part.tokens) for part in parts]
        rows = np.arange(sum(sizes), dtype=np.int32)
        of_1 = slice(sizes[0], sizes[0] + sizes[1])
        others = np.delete(rows, of_1)
        active = tuple(
            ActiveRows(ops.start, ops.stop, others)
            for sublayer, ops in model.program.sublayers().items()
            if sublayer in skipped
        )
        found = run(mixed, parts, active)
        expected = run(whole, parts)
        np.testing.assert_array_equal(found.logits[others], expected.logits[others])
        np.testing.assert_array_equal(found.hidden[1][others], expected.hidden[1][others])
        alone = run(smaller, [parts[1]])
        np.testing.assert_array_equal(found.logits[of_1], alone.logits)


@pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
def test_nobody_may_be_active(backend: Backend) -> None:
    model = on(backend, SHAPES["experts"])
    smaller = without(model, {(1, "attention"), (1, "feed_forward")})
    nobody = np.empty(0, np.int32)
    skipped = [ops for (layer, _), ops in model.program.sublayers().items() if layer == 1]
    active = tuple(ActiveRows(ops.start, ops.stop, nobody) for ops in skipped)
    stepper, oracle = Stepper(model), Stepper(smaller)
    for parts in STEPS:
        found, alone = run(stepper, parts, active), run(oracle, parts)
        np.testing.assert_array_equal(found.logits, alone.logits)


@pytest.mark.parametrize("shape", ["plain", "bf16", "window", "head norms", "shared expert"])
def test_any_rows_may_be_active(shape: str) -> None:
    """The native backend against the plain one, with rows drawn for each sublayer."""
    rng = np.random.default_rng(3)
    steppers = [Stepper(on(backend, SHAPES[shape])) for backend in (CPU, ReferenceBackend())]
    for parts in STEPS:
        rows = np.arange(sum(len(part.tokens) for part in parts), dtype=np.int32)
        active = tuple(
            ActiveRows(ops.start, ops.stop, rows[rng.random(len(rows)) < 0.6])
            for ops in steppers[0].model.program.sublayers().values()
        )
        native, plain = (run(stepper, parts, active) for stepper in steppers)
        tolerance = 0.05 if "bf16" in shape else 1e-4
        np.testing.assert_allclose(native.logits, plain.logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
def test_a_row_that_does_not_attend_has_no_scores(backend: Backend) -> None:
    model = on(backend, SHAPES["plain"])
    stepper = Stepper(model)
    step = stepper.build([Part(0, [3, 1, 4])])
    step.wants_scores = {1: np.array([0, 2], np.int32)}
    step.wants_queries = {1: np.array([0, 2], np.int32)}
    step.wants_score_sums = {1: np.array([0, 2], np.int32)}
    sets = RowSets(np.array([0, 0, 2], np.int32), np.array([0, 1, 3], np.int32))
    step.wants_score_totals = {1: sets}
    ops = model.program.sublayers()[1, "attention"]
    for some, shapes in (([1, 2], [(2, 0), (2, 3)]), ([], [(2, 0), (2, 0)])):
        step.active = (ActiveRows(ops.start, ops.stop, np.array(some, np.int32)),)
        under_way = stepper.executor.begin(step)
        stepper.executor.run(under_way, 0, len(model.program.ops))
        output = stepper.executor.finish(under_way)
        assert [scores.shape for scores in output.scores[1]] == shapes
        assert [scores.shape for scores in output.score_sums[1]] == [each[1:] for each in shapes]
        assert [total.shape for total in output.score_totals[1]] == shapes
        assert output.queries[1].any(axis=1).tolist() == [row in some for row in (0, 2)]


@pytest.mark.parametrize("rows", [[2, 1], [0, 0], [5], [-1]], ids=str)
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    model = on(CPU, SHAPES["plain"])
    stepper = Stepper(model)
    step = stepper.build([Part(0, [3, 1, 4])])
    step.active = (ActiveRows(1, 4, np.array(rows, np.int32)),)
    with pytest.raises(ValueError, match="active"):
        stepper.executor.begin(step)
