"""The native sampler chooses what the NumPy sampler chooses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.core.errors import OckhamError
from ockham.core.noise import gumbel, uniform_words
from ockham.core.sampling_params import SamplingParams
from ockham.kernels import sampling
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.native import core
from ockham.kernels.reference.backend import ReferenceBackend
from ockham.kernels.sampling import Draw
from tests.helpers import isas
from tests.helpers.programs import SHAPES, on

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

VOCABULARY = 500
REFERENCE = ReferenceBackend()


@pytest.fixture(scope="module")
def sample() -> object:
    from ockham.kernels.cpu import CpuBackend

    model = on(CpuBackend(2), SHAPES["plain"])
    executor = model.backend.bind(model.program, model.backend.allocate(model.layouts))
    return lambda logits, draws: [drawn.token for drawn in executor.sample(logits, draws)]


def expected(logits: np.ndarray, draws: list[Draw]) -> list[int | None]:
    return [drawn.token for drawn in sampling.sample(logits, draws)]


def logits(seed: int, rows: int, spread: float, vocabulary: int = VOCABULARY) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)


def words(allowed: np.ndarray) -> np.ndarray:
    """A mask of the tokens that are allowed."""
    bits = np.zeros(-(-len(allowed) // 32) * 32, bool)
    bits[: len(allowed)] = allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("isa", isas.params())
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**32 - 1),
    tokens=st.lists(st.integers(0, 200_000), max_size=12),
)
def test_noise_of_tokens_is_drawn_to_the_bit(
    isa: object, seed: int, stream: int, position: int, tokens: list[int]
) -> None:
    """In any order, and more than once."""
    ids = np.array(tokens, np.int64)
    words = np.empty(len(ids), np.uint32)
    core.noise_words(isa, seed, stream, position, ids, words)
    np.testing.assert_array_equal(words, uniform_words(seed, stream, position, ids))


def test_both_backends_draw_the_same_noise() -> None:
    ids = np.array([5, 3, 101_000, 5, 70], np.int64)
    found = [
        model.backend.bind(model.program, model.backend.allocate(model.layouts)).noise(
            7 << 40, 3, 900, ids
        )
        for model in (on(backend, SHAPES["plain"]) for backend in (CpuBackend(1), REFERENCE))
    ]
    np.testing.assert_array_equal(found[0], gumbel(7 << 40, 3, 900, ids))
    np.testing.assert_array_equal(found[0], found[1])


def test_noise_of_tokens_that_there_are_not_is_refused() -> None:
    isa = core.detect()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        core.noise_words(isa, 0, 0, 0, np.array([-1], np.int64), np.empty(1, np.uint32))
    with pytest.raises(ValueError, match="a place for its word"):
        core.noise_words(isa, 0, 0, 0, np.array([1], np.int64), np.empty(2, np.uint32))


@given(
    seed=st.integers(0, 10**9),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 499, 600]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    penalty=st.sampled_from([0.0, 0.7]),
    masked=st.booleans(),
    bits=st.booleans(),
)
def test_the_same_token_for_any_parameters(
    sample: object,
    seed: int,
    spread: float,
    repetition_penalty: float,
    penalty: float,
    masked: bool,
    bits: bool,
    **params: float,
) -> None:
    rng = np.random.default_rng(seed)
    rows = logits(seed, 3, spread)
    rows[1, rng.integers(0, VOCABULARY, 100)] = rows[1].max()  # ties
    given_params = SamplingParams(
        repetition_penalty=repetition_penalty,
        frequency_penalty=penalty,
        presence_penalty=-penalty,
        logit_bias={3: 2.5, 17: -1.0} if masked else None,
        allowed_token_ids=list(range(0, VOCABULARY, 3)) if masked else None,
        **params,  # type: ignore[arg-type]
    )
    draws = [
        Draw(
            row,
            given_params,
            seed * 7919,
            row,
            seed % 1000,
            forbidden=[0, 9, 30] if masked else (),
            mask=words(rng.random(VOCABULARY) < 0.3) if bits else None,
            seen=np.unique(rng.integers(0, VOCABULARY, 60)),
            output=np.arange(5, 25),
            output_counts=rng.integers(1, 9, 20),
        )
        for row in (2, 0, 1)
    ]
    assert sample(rows, draws) == expected(rows, draws)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_the_same_tokens_of_a_large_vocabulary(sample: object, spread: float) -> None:
    rows = logits(1, 1, spread, 128256)
    draws = [
        Draw(0, SamplingParams(temperature=t, top_p=p), 11, 0, position)
        for position in range(20)
        for t, p in ((1.0, 1.0), (0.6, 0.9), (3.0, 1.0))
    ]
    assert sample(rows, draws) == expected(rows, draws)


@pytest.mark.parametrize("isa", isas.NAMES)
def test_words_are_those_of_the_reference_and_noise_within_a_last_bit(isa: str) -> None:
    isas.need(isa)
    which = core.parse_isa(isa)
    ids = np.array([0, 1, 2, 3, 4, 1000, 128255, 2**31 - 1])
    for seed, stream, position in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (12345, 2, 77)):
        found = [core.gumbel(which, seed, stream, position, token) for token in ids.tolist()]
        assert [w for w, _ in found] == uniform_words(seed, stream, position, ids).tolist()
        assert np.allclose([g for _, g in found], gumbel(seed, stream, position, ids), rtol=1e-15)


def test_log_and_exp_are_within_one_unit_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    for x in np.exp(rng.uniform(-40, 40, 20000)).tolist():
        assert abs(core.natural_log(x) - math.log(x)) <= math.ulp(math.log(x))
    for x in rng.uniform(-700, 700, 20000).tolist():
        assert abs(core.natural_exp(x) - math.exp(x)) <= math.ulp(math.exp(x))


def test_no_token_where_masks_leave_none(sample: object) -> None:
    params = SamplingParams(allowed_token_ids=[4, 7])
    draws = [Draw(0, params, 1, 0, 0, forbidden=[4, 7]), Draw(0, SamplingParams(), 1, 0, 0)]
    found = sample(logits(2, 1, 1.0), draws)
    assert found[0] is None
    assert found == expected(logits(2, 1, 1.0), draws)


@pytest.mark.parametrize("vocabulary", [64, 65, 95, 4000])
def test_a_mask_leaves_only_its_tokens(sample: object, vocabulary: int) -> None:
    rows = logits(3, 1, 5.0, vocabulary)
    for only in (0, 31, 32, vocabulary - 1):
        draw = Draw(0, SamplingParams(), 1, 0, 0, mask=words(np.arange(vocabulary) == only))
        assert sample(rows, [draw]) == expected(rows, [draw]) == [only]
    nothing = Draw(0, SamplingParams(), 1, 0, 0, mask=words(np.zeros(vocabulary, bool)))
    assert sample(rows, [nothing]) == expected(rows, [nothing]) == [None]


def test_a_mask_of_too_few_words_is_refused(sample: object) -> None:
    draw = Draw(0, SamplingParams(), 1, 0, 0, mask=np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="too few"):
        sample(logits(3, 1, 1.0), [draw])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_named(
    sample: object, value: float, temperature: float
) -> None:
    rows = logits(3, 2, 1.0)
    rows[1, 499] = value
    with pytest.raises(OckhamError, match=f"a logit of {value}"):
        sample(rows, [Draw(1, SamplingParams(temperature=temperature), 1, 0, 0)])


def test_ids_outside_of_the_vocabulary_are_refused(sample: object) -> None:
    for draw in (
        Draw(1, SamplingParams(), 1, 0, 0),
        Draw(0, SamplingParams(logit_bias={500: 1.0}), 1, 0, 0),
        Draw(0, SamplingParams(), 1, 0, 0, forbidden=[-1]),
    ):
        with pytest.raises(ValueError, match=r"no row 1|not in a vocabulary"):
            sample(logits(4, 1, 1.0), [draw])
