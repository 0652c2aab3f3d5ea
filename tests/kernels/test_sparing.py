"""Rows that decide which feed-forwards they skip: the bits of rows that are told to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ockham.core.cost import FEED_FORWARD
from ockham.core.sparing import SKIPPED, Sparing, SparingRule
from ockham.core.step import ActiveRows, Step, StepOutput
from ockham.kernels.backends import find_backend
from ockham.kernels.base import Backend
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import Shape, on
from tests.helpers.steps import Part, Stepper

CPU = find_backend("cpu", 2)
LAYERS = 6
SHAPES = {"plain": Shape(layers=LAYERS), "experts": Shape(layers=LAYERS, experts=4)}
PARTS = [Part(0, [3, 1, 4, 1, 5]), Part(1, [9, 2, 6, 5, 3, 5, 8]), Part(2, [7, 11])]
RULES = [SparingRule(0.9, 1, 0, LAYERS, 0), SparingRule(0.8, 2, 1, LAYERS - 1, 0)]
OF_ROWS = np.array([0, 0, -1, 0, 0, 1, 1, 1, -1, 1, 1, 1, -1, 0], np.int32)


def layers_of(stepper: Stepper) -> list[range]:
    sublayers = stepper.model.program.sublayers()
    return [sublayers[layer, FEED_FORWARD] for layer in range(LAYERS)]


def sparing(stepper: Stepper, of_rows: np.ndarray) -> Sparing:
    operations = layers_of(stepper)
    return Sparing.of(
        of_rows,
        RULES,
        np.array([each.start for each in operations], np.int32),
        np.array([each.stop for each in operations], np.int32),
    )


def decided(stepper: Stepper, parts: list[Part], of_rows: np.ndarray) -> StepOutput:
    step = stepper.build(parts)
    step.sparing = sparing(stepper, of_rows)
    run = stepper.executor.begin(step)
    stepper.executor.run(run, 0, len(stepper.model.program.ops))
    return stepper.executor.finish(run)


def told(stepper: Stepper, parts: list[Part], of_rows: np.ndarray) -> tuple[StepOutput, np.ndarray]:
    """The same, decided here: each feed-forward is run over the rows that do not skip it."""
    step = stepper.build(parts)
    left = np.zeros(step.rows, np.int64)
    skipped = np.zeros((LAYERS, step.rows), np.uint8)
    ranges = layers_of(stepper)
    for layer, operations in enumerate(ranges):
        before = _stream(stepper, step, operations.start)
        ruled = np.array(
            [rule >= 0 and RULES[rule].first <= layer < RULES[rule].stop for rule in of_rows]
        )
        skips = ruled & (left > 0)
        left[skips] -= 1
        skipped[layer] = skips
        rows = np.flatnonzero(~skips).astype(np.int32)
        step.active = (*step.active, ActiveRows(operations.start, operations.stop, rows))
        after = _stream(stepper, step, operations.stop)
        for row in np.flatnonzero(ruled & ~skips):
            x, y = (each[row].astype(np.float64) for each in (before, after))
            rule = RULES[of_rows[row]]
            if (x @ y) / np.sqrt((x @ x) * (y @ y)) >= rule.threshold:
                left[row] = rule.length
    run = stepper.executor.begin(step)
    stepper.executor.run(run, 0, len(stepper.model.program.ops))
    return stepper.executor.finish(run), skipped


def _stream(stepper: Stepper, step: Step, stop: int) -> Any:
    run = stepper.executor.begin(step)
    stepper.executor.run(run, 0, stop)
    return np.array(run.x)


@pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_row_decides_as_it_would_be_told(backend: Backend, shape: str) -> None:
    model = on(backend, SHAPES[shape])
    found = decided(Stepper(model), PARTS, OF_ROWS)
    expected, skipped = told(Stepper(model), PARTS, OF_ROWS)
    np.testing.assert_array_equal(found.spared == SKIPPED, skipped)
    np.testing.assert_array_equal(found.logits, expected.logits)
    ruled = OF_ROWS >= 0
    assert 0 < skipped[:, ruled].mean() < 1
    assert not skipped[:, ~ruled].any()


def test_a_row_decides_the_same_alone() -> None:
    model = on(CPU, SHAPES["plain"])
    beside = decided(Stepper(model), PARTS, OF_ROWS)
    first = 0
    for part in PARTS:
        rows = slice(first, first + len(part.tokens))
        alone = decided(Stepper(model), [part], OF_ROWS[rows])
        np.testing.assert_array_equal(beside.logits[rows], alone.logits)
        np.testing.assert_array_equal(beside.spared[:, rows], alone.spared)
        first = rows.stop
    nobody = decided(Stepper(model), PARTS, np.full(14, -1, np.int32))
    plain = Stepper(model)
    step = plain.build(PARTS)
    run = plain.executor.begin(step)
    plain.executor.run(run, 0, len(model.program.ops))
    output = plain.executor.finish(run)
    np.testing.assert_array_equal(nobody.logits, output.logits)
    assert not nobody.spared.any()
    assert output.spared.shape == (0, 0)


def test_a_step_may_stop_between_operations() -> None:
    stepper = Stepper(on(CPU, SHAPES["experts"]))
    step = stepper.build(PARTS)
    step.sparing = sparing(stepper, OF_ROWS)
    run = stepper.executor.begin(step)
    for place in range(len(stepper.model.program.ops)):
        stepper.executor.run(run, place, place + 1)
    found = stepper.executor.finish(run)
    whole = decided(Stepper(stepper.model), PARTS, OF_ROWS)
    np.testing.assert_array_equal(found.logits, whole.logits)
    np.testing.assert_array_equal(found.spared, whole.spared)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rows", np.full(14, 2, np.int32), "decides by rule 2 of 2"),
        ("rows", np.zeros(3, np.int32), "rules of rows"),
        ("lengths", np.array([-1, 1], np.int32), "skips -1 feed-forwards"),
        ("lengths", np.array([1], np.int32), "do not add up"),
        ("ends", np.array([1], np.int32), "do not add up"),
    ],
    ids=["no such rule", "other rows", "below 0", "too few", "other layers"],
)
def test_rules_that_are_wrong_are_refused(field: str, value: Any, words: str) -> None:
    stepper = Stepper(on(CPU, SHAPES["plain"]))
    step = stepper.build(PARTS)
    step.sparing = sparing(stepper, OF_ROWS)
    setattr(step.sparing, field, value)
    with pytest.raises(ValueError, match=words):
        stepper.executor.begin(step)
