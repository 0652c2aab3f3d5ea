"""The first neurons of feed-forwards alone: the same bits as matrices that were cut to them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import ml_dtypes
import numpy as np
import pytest

from ockham.core.registry import make
from ockham.core.seams import Linear
from ockham.kernels.backends import find_backend
from ockham.kernels.base import Backend
from ockham.kernels.ops import FeedForward, Operation, Program
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.programs import SHAPES, Shape, on
from tests.helpers.steps import Part, Stepper

CPU = find_backend("cpu", 2)
BACKENDS = pytest.mark.parametrize("backend", [CPU, ReferenceBackend()], ids=["cpu", "reference"])
STEPS = [
    [Part(0, [3, 1, 4, 1, 5]), Part(1, [9, 2, 6, 5, 3, 5, 8]), Part(2, [7])],
    [Part(0, [2])],
    [Part(0, [31, 37, 41], [-1, 0, -1]), Part(1, [43]), Part(2, [47, 53], [-1, 0])],
    [Part(1, list(range(70)))],
]
"""Chunks of prompts, a row that decodes, draft trees, and as many rows as tiles are made of."""
FORMATS = ["fp32", "bf16", "int8", "int4:group=64", "nf4:group=64"]
"""Whose weights are stored alike whatever stands beside a group of 64 inputs."""


HIDDEN, INNER = 128, 320


def random_feed_forwards(
    program: Program, weights: str, seed: int, kept: int | None = None
) -> Program:
    """The program with feed-forwards of random weights of a format, of which the first `kept`
    neurons are left."""
    rng = np.random.default_rng(seed)
    format = make("format", weights)

    def pack(values: np.ndarray) -> Linear:
        values = values.astype(ml_dtypes.bfloat16 if weights == "bf16" else np.float32)
        return cast("Linear", format.pack(*values.shape, [values]))

    ops: list[Operation] = []
    for op in program.ops:
        if isinstance(op, FeedForward):
            inner = op.down.in_features
            kinds = op.gate_up.out_features // inner
            stack = rng.standard_normal((kinds, inner, op.down.out_features)) / 8
            down = rng.standard_normal((op.down.out_features, inner)) / 8
            bias = op.gate_up_bias
            if bias is not None:
                bias = np.ascontiguousarray(bias.reshape(kinds, inner)[:, :kept]).reshape(-1)
            gate_up = stack[:, :kept].reshape(-1, op.down.out_features)
            op = replace(op, gate_up=pack(gate_up), down=pack(down[:, :kept]), gate_up_bias=bias)
        ops.append(op)
    return Program(tuple(ops), program.breakpoints)


def pair(
    backend: Backend, shape: Shape, weights: str, kept: int, seed: int = 1
) -> tuple[Stepper, Stepper, dict[int, int]]:
    """A model, the one that was cut, and what a step of the first wants to be like the second."""
    model = on(backend, shape)
    whole = replace(model, program=random_feed_forwards(model.program, weights, seed))
    cut = replace(model, program=random_feed_forwards(model.program, weights, seed, kept))
    leading = {place: kept for place, op in enumerate(whole.program.ops) if op.neurons}
    return Stepper(whole), Stepper(cut), leading


def run(stepper: Stepper, parts: list[Part], leading: dict[int, int]) -> np.ndarray:
    """The logits of all rows."""
    step = stepper.build(parts)
    step.leading = leading
    under_way = stepper.executor.begin(step)
    stepper.executor.run(under_way, 0, len(stepper.model.program.ops))
    output = stepper.executor.finish(under_way)
    for part in parts:
        if part.parents is None:
            stepper._commit(part)
    return output.logits


@BACKENDS
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("kept", [64, 192, 256])
def test_first_neurons_are_a_model_that_was_cut_to_them(
    backend: Backend, weights: str, kept: int
) -> None:
    shape = Shape(hidden=HIDDEN, inner=INNER)
    whole, cut, leading = pair(backend, shape, weights, kept)
    for parts in STEPS:
        found, alone = run(whole, parts, leading), run(cut, parts, {})
        if backend is CPU:
            np.testing.assert_array_equal(found, alone)
        else:  # BLAS sums in another order where rows are longer
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ["gelu", "layer norms", "biases", "relu", "bf16", "head norms"])
@pytest.mark.parametrize("kept", [1, 17, 36])
def test_any_number_of_neurons_may_lead(shape: str, kept: int) -> None:
    """Panels of 16 outputs hold gates and ups of some that do not."""
    weights = SHAPES[shape].weights
    whole, cut, leading = pair(CPU, SHAPES[shape], weights, kept)
    for parts in STEPS[:3]:
        np.testing.assert_array_equal(run(whole, parts, leading), run(cut, parts, {}))


@pytest.mark.parametrize("isa", isas.EVERY)
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4:group=64", "nf4:group=64"])
def test_every_instruction_set_computes_the_first_neurons(
    isa: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas.use(isa, monkeypatch)
    shape = Shape(hidden=HIDDEN, inner=INNER)
    whole, cut, leading = pair(find_backend("cpu", 1), shape, weights, 128)
    for parts in STEPS:
        np.testing.assert_array_equal(run(whole, parts, leading), run(cut, parts, {}))


@BACKENDS
def test_rows_without_a_wish_compute_all_neurons(backend: Backend) -> None:
    whole, _, leading = pair(backend, Shape(hidden=HIDDEN, inner=INNER), "int8", 64)
    again = Stepper(whole.model)
    for parts in STEPS:
        all_of_them = dict.fromkeys(leading, INNER)
        np.testing.assert_array_equal(run(whole, parts, {}), run(again, parts, all_of_them))


@BACKENDS
@pytest.mark.parametrize("leading", [{0: 4}, {-1: 4}, {99: 4}, {4: 0}, {4: 41}], ids=str)
def test_neurons_that_are_not_there_are_refused(backend: Backend, leading: dict[int, int]) -> None:
    model = on(backend, SHAPES["plain"])
    assert model.program.ops[4].neurons == 40
    stepper = Stepper(model)
    step = stepper.build([Part(0, [3, 1, 4])])
    step.leading = leading
    with pytest.raises(ValueError, match="neurons"):
        stepper.executor.begin(step)
