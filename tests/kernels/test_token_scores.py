"""How sure a model is of a token: log probability, confidence and entropy of a row of logits."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.arrays import Floats
from ockham.core.errors import OckhamError
from ockham.kernels import sampling
from ockham.kernels.native import core
from tests.helpers import isas

TOP = 20


def drawn(seed: int, rows: int, vocabulary: int, spread: float) -> Floats:
    rng = np.random.default_rng(seed)
    logits: Floats = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    return logits


def plainly(row: Floats, token: int, top: int) -> tuple[float, float, float]:
    logprobs = row.astype(np.float64) - row.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    highest = np.sort(logprobs)[::-1][:top]
    p = np.exp(logprobs)
    seen = p > 0
    entropy = -(p[seen] * logprobs[seen]).sum()
    return float(logprobs[token]), float(-highest.mean()), float(entropy)


@pytest.mark.parametrize(("vocabulary", "spread"), [(5, 1.0), (500, 3.0), (4099, 0.01), (97, 60.0)])
def test_they_are_what_they_are_defined_as(vocabulary: int, spread: float) -> None:
    logits = drawn(3, 4, vocabulary, spread)
    logits[2, ::2] = -np.inf  # as of masked tokens
    rows, tokens = np.array([3, 0, 2], np.int32), np.array([1, 4, 3], np.int32)
    found = sampling.token_scores(logits, rows, tokens, TOP)
    for row, token, of_token in zip(rows.tolist(), tokens.tolist(), found, strict=True):
        finite = logits[row][np.isfinite(logits[row])]
        if len(finite) == vocabulary:
            assert of_token == pytest.approx(plainly(logits[row], token, TOP), rel=1e-9, abs=1e-9)
        else:
            assert np.isfinite(of_token[[0, 2]]).all()


@pytest.mark.parametrize("isa", isas.NAMES)
@pytest.mark.parametrize(("vocabulary", "spread"), [(5, 1.0), (500, 3.0), (4099, 0.01), (97, 60.0)])
def test_the_native_ones_are_those_of_the_reference(
    isa: str, vocabulary: int, spread: float
) -> None:
    isas.need(isa)
    logits = drawn(5, 6, vocabulary, spread)
    rows, tokens = np.array([5, 0, 2, 2], np.int32), np.array([1, 4, 3, 0], np.int32)
    expected = sampling.token_scores(logits, rows, tokens, TOP)
    by_threads = []
    for threads in (1, 2):
        found = np.empty((4, 3))
        pool = core.ThreadPool(threads)
        assert core.score_tokens(pool, core.parse_isa(isa), logits, rows, tokens, TOP, found)
        by_threads.append(found)
    np.testing.assert_allclose(by_threads[0], expected, rtol=2e-5, atol=2e-5)
    assert (by_threads[0] == by_threads[1]).all()


@pytest.mark.parametrize("isa", isas.NAMES)
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    isas.need(isa)
    logits = drawn(7, 3, 5003, 4.0)
    rows, tokens = np.arange(3, dtype=np.int32), np.array([1, 4, 3], np.int32)
    pool, found = core.ThreadPool(1), np.empty((3, 3))
    portable = np.empty((3, 3))
    core.score_tokens(pool, core.parse_isa(isa), logits, rows, tokens, TOP, found)
    core.score_tokens(pool, core.parse_isa("portable"), logits, rows, tokens, TOP, portable)
    assert (found == portable).all()


def test_what_is_not_finite_is_said() -> None:
    logits = drawn(9, 2, 50, 1.0)
    logits[1, 7] = np.nan
    rows, tokens, found = np.array([1], np.int32), np.array([3], np.int32), np.empty((1, 3))
    pool = core.ThreadPool(1)
    assert not core.score_tokens(pool, core.parse_isa("portable"), logits, rows, tokens, TOP, found)
    with pytest.raises(OckhamError, match="the model produced a logit"):
        sampling.token_scores(logits, rows, tokens, TOP)


@pytest.mark.parametrize(
    ("rows", "tokens", "top", "said"),
    [([2], [0], 3, "no row 2"), ([0], [50], 3, "token id 50"), ([0], [0], 0, "top is 0")],
)
def test_what_is_not_there_is_refused(
    rows: list[int], tokens: list[int], top: int, said: str
) -> None:
    places, ids = np.array(rows, np.int32), np.array(tokens, np.int32)
    with pytest.raises(ValueError, match=said):
        core.score_tokens(
            core.ThreadPool(1),
            core.parse_isa("portable"),
            drawn(1, 2, 50, 1.0),
            places,
            ids,
            top,
            np.empty((1, 3)),
        )
