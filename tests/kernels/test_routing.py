"""Rows that choose how many neurons they run: the bits of steps that are told to."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.cost import FEED_FORWARD
from ockham.core.sparing import ALL, SKIPPED, RoutingRule, Sparing, SparingRule
from ockham.core.step import ActiveRows, StepOutput
from ockham.kernels.backends import find_backend
from ockham.kernels.base import Backend
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.programs import Shape, on
from tests.helpers.steps import Part, Stepper

CPU = find_backend("cpu", 2)
LAYERS = 3
SHAPE = Shape(layers=LAYERS)
PARTS = [Part(0, [3, 1, 4, 1, 5]), Part(1, [9, 2, 6, 5, 3, 5, 8]), Part(2, [7, 11])]
ROWS = sum(len(part.tokens) for part in PARTS)
OF_ROWS = np.array([0, 0, -1, 0, 0, 1, 1, 1, -1, 1, 1, 2, 2, 0], np.int32)


def operations(stepper: Stepper) -> list[range]:
    sublayers = stepper.model.program.sublayers()
    return [sublayers[layer, FEED_FORWARD] for layer in range(LAYERS)]


def neurons(stepper: Stepper) -> int:
    return stepper.model.program.ops[operations(stepper)[0].start].neurons


def sparing(stepper: Stepper, of_rows: np.ndarray) -> Sparing:
    """Three rules: routers of three choices and of two, and one that looks at cosines."""
    rng = np.random.default_rng(5)
    hidden, whole = 0, neurons(stepper)
    hidden = stepper.model.program.ops[operations(stepper)[0].start].down.out_features
    rules = [
        RoutingRule(
            np.tile(np.array(widths, np.int32), (LAYERS, 1)),
            rng.normal(size=(LAYERS, len(widths), hidden)).astype(np.float32),
            rng.normal(size=(LAYERS, len(widths))).astype(np.float32),
            0,
        )
        for widths in ([SKIPPED, 16, whole], [32, ALL])
    ]
    starts = np.array([each.start for each in operations(stepper)], np.int32)
    ends = np.array([each.stop for each in operations(stepper)], np.int32)
    return Sparing.of(of_rows, [*rules, SparingRule(0.5, 1, 0, LAYERS, 0)], starts, ends)


def run(stepper: Stepper, parts: list[Part], rule: Sparing | None) -> StepOutput:
    step = stepper.build(parts)
    step.wants_hidden = {n: np.arange(step.rows, dtype=np.int32) for n in range(LAYERS)}
    step.sparing = rule
    under_way = stepper.executor.begin(step)
    stepper.executor.run(under_way, 0, len(stepper.model.program.ops))
    return stepper.executor.finish(under_way)


@pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
def test_rows_choose_by_their_own_values(backend: Backend) -> None:
    """The choices are computed here from the stream before each feed-forward."""
    stepper = Stepper(on(backend, SHAPE))
    rule = sparing(stepper, OF_ROWS)
    found = run(stepper, PARTS, rule)
    oracle = Stepper(stepper.model)
    step = oracle.build(PARTS)
    step.sparing = rule
    under_way, at = oracle.executor.begin(step), 0
    assert rule.routed is not None
    assert rule.routers is not None
    for layer, place in enumerate(operations(oracle)):
        oracle.executor.run(under_way, at, place.start)
        x = np.array(under_way.x, np.float64)
        x /= np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)
        for row in np.flatnonzero(rule.routed >= 0):
            router = rule.routed[row]
            scores = rule.routers.weights[router, layer] @ x[row]
            choice = int((scores + rule.routers.biases[router, layer]).argmax())
            width = int(rule.routers.widths[router, layer, choice])
            assert found.spared[layer, row] == (ALL if width >= neurons(oracle) else width)
        at = place.start
    assert {-1, 0, 16, 32} <= set(np.unique(found.spared).tolist())


@pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
def test_what_was_chosen_can_be_told(backend: Backend) -> None:
    """Each row alone, told the widths that it chose, by `Step.leading` and `Step.active`."""
    stepper = Stepper(on(backend, SHAPE))
    chosen = run(stepper, PARTS, sparing(stepper, OF_ROWS))
    told = sparing(stepper, np.full(ROWS, -1, np.int32))
    told.told, told.routed, told.routers = np.ascontiguousarray(chosen.spared), None, None
    again = run(Stepper(stepper.model), PARTS, told)
    np.testing.assert_array_equal(again.logits, chosen.logits)
    np.testing.assert_array_equal(again.spared, chosen.spared)
    assert {layer: len(rows) for layer, rows in again.hidden.items()} == dict.fromkeys(
        range(LAYERS), ROWS
    )
    for layer in range(LAYERS):
        np.testing.assert_array_equal(again.hidden[layer], chosen.hidden[layer])
    [part] = [each for each in PARTS if each.sequence == 0]
    for row in (0, 1):
        alone = Stepper(stepper.model)
        for before in range(row + 1):
            step = alone.build([Part(0, [part.tokens[before]])])
            nobody = np.empty(0, np.int32)
            for layer, place in enumerate(operations(alone)):
                width = int(chosen.spared[layer, before])
                if width == SKIPPED:
                    step.active = (*step.active, ActiveRows(place.start, place.stop, nobody))
                elif width != ALL:
                    step.leading[place.start] = width
            under_way = alone.executor.begin(step)
            alone.executor.run(under_way, 0, len(alone.model.program.ops))
            output = alone.executor.finish(under_way)
            alone._commit(Part(0, [part.tokens[before]]))
        if backend is CPU:
            np.testing.assert_array_equal(output.logits[0], chosen.logits[row])
        else:
            np.testing.assert_allclose(output.logits[0], chosen.logits[row], rtol=1e-5, atol=1e-5)


def test_a_row_chooses_the_same_alone() -> None:
    stepper = Stepper(on(CPU, SHAPE))
    beside, first = run(stepper, PARTS, sparing(stepper, OF_ROWS)), 0
    for part in PARTS:
        rows = slice(first, first + len(part.tokens))
        alone = run(Stepper(stepper.model), [part], sparing(stepper, OF_ROWS[rows]))
        np.testing.assert_array_equal(beside.logits[rows], alone.logits)
        np.testing.assert_array_equal(beside.spared[:, rows], alone.spared)
        first = rows.stop


def test_routers_that_do_not_fit_are_refused() -> None:
    stepper = Stepper(on(CPU, SHAPE))
    rule = sparing(stepper, OF_ROWS)
    assert rule.routers is not None
    rule.routers.weights = np.ascontiguousarray(rule.routers.weights[..., :-1])
    with pytest.raises(ValueError, match="the model has 3 of width"):
        run(stepper, PARTS, rule)
    rule = sparing(stepper, OF_ROWS)
    assert rule.routed is not None
    rule.routed = rule.routed + np.int32(2)
    with pytest.raises(ValueError, match="follows router"):
        run(stepper, PARTS, rule)
    rule = sparing(stepper, OF_ROWS)
    rule.told = np.full((LAYERS, ROWS), -2, np.int32)
    with pytest.raises(ValueError, match="run -2 neurons"):
        run(stepper, PARTS, rule)
