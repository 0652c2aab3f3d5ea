"""The head's argmax without logits is the argmax of the logits, for every shape and batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ockham.core.errors import OckhamError
from ockham.core.registry import find
from ockham.kernels.base import Backend
from ockham.kernels.ops import Head, Program
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers import isas
from tests.helpers.programs import SHAPES, VOCABULARY, on
from tests.helpers.steps import Part, Stepper

WIDE = 5000
"""Tokens of a vocabulary that takes many tiles."""


@pytest.fixture(params=["reference", *isas.NAMES])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "reference":
        return ReferenceBackend()
    isas.use(request.param, monkeypatch)
    from ockham.kernels.cpu import CpuBackend

    return CpuBackend(2)


def tokens(count: int) -> list[int]:
    found: list[int] = np.random.default_rng(count).integers(0, VOCABULARY, count).tolist()
    return found


def with_logits(backend: Backend, logits: np.ndarray) -> Stepper:
    """A model whose every row has these logits."""
    model = on(backend, SHAPES["plain"])
    *ops, head = model.program.ops
    assert isinstance(head, Head)
    zeros = np.zeros((len(logits), head.out.in_features), np.float32)
    nothing = find("format", "fp32").cls().pack(*zeros.shape, [zeros])
    constant = Head(nothing, head.norm, logits)
    return Stepper(replace(model, program=Program((*ops, constant))))


@pytest.mark.parametrize("name", SHAPES)
def test_argmax_is_that_of_the_logits(name: str, backend: Backend) -> None:
    model = on(backend, SHAPES[name])
    parts = [Part(0, tokens(70)), Part(1, tokens(9))]
    logits = Stepper(model).step(parts).logits
    wanted = [0, 13, 69, 70, 78]
    alone = Stepper(model).step(parts, wants_logits=[], wants_argmax=wanted)
    assert alone.logits.shape == (0, VOCABULARY)
    assert alone.argmax == logits[wanted].argmax(axis=1).tolist()
    mixed = Stepper(model).step(parts, wants_logits=[5, 71], wants_argmax=wanted)
    assert mixed.argmax == alone.argmax
    pairs = [(alone.largest, logits[wanted].max(axis=1)), (mixed.logits, logits[[5, 71]])]
    for one, other in pairs:
        if isinstance(backend, ReferenceBackend):  # which sums in another order for fewer rows
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("wanted", [1, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_candidates_are_the_largest_logits(name: str, wanted: int, backend: Backend) -> None:
    """Of rows with logits and rows without; nothing else changes a bit."""
    model = on(backend, SHAPES[name])
    parts = [Part(0, tokens(70)), Part(1, tokens(9))]
    rows: dict[str, list[int]] = {"wants_logits": [5, 71], "wants_argmax": [0, 13, 69, 70, 78]}
    plain = Stepper(model).step(parts, **rows)
    found = Stepper(model).step(parts, candidates=wanted, **rows)
    assert found.argmax == plain.argmax
    assert np.array_equal(found.largest, plain.largest)
    assert np.array_equal(found.logits, plain.logits)
    assert plain.candidates.size == 0
    logits = Stepper(model).step(parts, wants_logits=[0, 5, 13, 69, 70, 71, 78]).logits
    order = np.argsort(-logits[[1, 5, 0, 2, 3, 4, 6]], axis=1, kind="stable")[:, :wanted]
    assert found.candidates.tolist() == order.tolist()


def test_candidates_are_found_across_tiles_the_lowest_first_on_a_tie(backend: Backend) -> None:
    logits = np.random.default_rng(1).uniform(-3, 1, WIDE).astype(np.float32)
    logits[[4000, 17, 4999, 18]] = 2.0
    logits[2500] = 3.0
    found = with_logits(backend, logits).step(
        [Part(0, [1, 2])], wants_logits=[0], wants_argmax=[1], candidates=5
    )
    assert found.candidates.tolist() == [[2500, 17, 18, 4000, 4999]] * 2


@pytest.mark.parametrize(
    "peaks", [{0: 2.0}, {4999: 2.0}, {17: 2.0, 4000: 2.0}, {4000: 2.0, 4001: 2.0, 4999: 2.0}]
)
def test_the_lowest_of_equal_tokens_wins(peaks: dict[int, float], backend: Backend) -> None:
    logits = np.random.default_rng(1).uniform(-3, 1, WIDE).astype(np.float32)
    for token, value in peaks.items():
        logits[token] = value
    found = with_logits(backend, logits).step([Part(0, [1, 2])], wants_logits=[], wants_argmax=[1])
    assert found.argmax == [min(peaks)]
    assert found.largest.tolist() == [2.0]


@pytest.mark.parametrize("values", [{3000: np.nan}, {17: np.inf}, {17: 9.0, 4000: np.nan}])
def test_logits_that_are_not_finite_are_refused(values: dict[int, float], backend: Backend) -> None:
    logits = np.zeros(WIDE, np.float32)
    for token, value in values.items():
        logits[token] = value
    stepper = with_logits(backend, logits)
    with pytest.raises(OckhamError, match=r"produced a logit of (nan|inf)"):
        stepper.step([Part(0, [1])], wants_logits=[], wants_argmax=[0])
    with_logits(backend, np.where(np.arange(WIDE) == 7, 0, -np.inf).astype(np.float32)).step(
        [Part(0, [1])], wants_logits=[], wants_argmax=[0]
    )


def test_an_argmax_of_a_row_that_is_not_there_is_refused(backend: Backend) -> None:
    with pytest.raises(ValueError, match="an argmax is wanted of row 2 of 2"):
        Stepper(on(backend, SHAPES["plain"])).step([Part(0, [1, 2])], wants_argmax=[2])
