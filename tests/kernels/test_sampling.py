"""The sampler: each parameter does what it says, and its shortcuts change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.core.errors import OckhamError
from ockham.core.noise import gumbel
from ockham.core.sampling_params import SamplingParams
from ockham.kernels.sampling import Draw, filtered, logprobs, process, sample

VOCABULARY = 500


def logits(seed: int, rows: int = 1, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, VOCABULARY)) * spread).astype(np.float32)


def draw(row=0, position=9, seed=3, stream=0, forbidden=(), **params) -> Draw:
    return Draw(row, SamplingParams(**params), seed, stream, position, forbidden)


def token(row: np.ndarray, **kw) -> int | None:
    return sample(row, [draw(**kw)])[0].token


def plain_choice(row: np.ndarray, d: Draw) -> int:
    """The rule of `sampling_params`, spelt out over the whole vocabulary."""
    p = d.params
    z = row.astype(np.float64) / p.temperature
    order = np.lexsort((np.arange(len(z)), -z))
    probabilities = np.exp(z - z.max())
    keep = np.ones(len(z), bool)
    if p.min_p:
        keep &= z >= z.max() + np.log(p.min_p)
    if p.top_k > 0:
        rank = [t for t in order if keep[t]][: p.top_k]
        keep[:] = False
        keep[rank] = True
    if p.top_p < 1:
        total, seen, kept = probabilities[keep].sum(), 0.0, []
        for t in order:
            if keep[t] and seen < p.top_p * total:
                kept.append(t)
                seen += probabilities[t]
        keep[:] = False
        keep[kept] = True
    z[~keep] = -np.inf
    return int((z + gumbel(d.seed, d.stream, d.position, np.arange(len(z)))).argmax())


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 5, 400]),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([0.1, 3.0, 15.0]),
)
def test_the_sampler_follows_the_written_rule(seed, temperature, top_k, top_p, min_p, spread):
    row = logits(seed, spread=spread)
    d = draw(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert sample(row, [d])[0].token == plain_choice(row[0], d)


def test_temperature_zero_takes_the_largest_and_the_lowest_id_on_a_tie():
    row = np.zeros((1, VOCABULARY), np.float32)
    row[0, [77, 33, 400]] = 5.0
    assert token(row, temperature=0) == 33
    assert token(row, temperature=0, logit_bias={2: 0.5}) == 33


def test_samples_have_the_models_distribution():
    row = np.full((1, VOCABULARY), -np.inf, np.float32)
    row[0, [3, 8, 21]] = np.log([0.5, 0.3, 0.2])
    chosen = [token(row, position=p) for p in range(4000)]
    shares = np.array([chosen.count(t) for t in (3, 8, 21)]) / 4000
    assert np.abs(shares - [0.5, 0.3, 0.2]).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_choice_does_not_depend_on_its_place_in_the_batch():
    rows = logits(1, rows=8)
    together = sample(rows, [draw(row=i, seed=i, top_p=0.9) for i in range(8)])
    alone = [sample(rows[i : i + 1], [draw(seed=i, top_p=0.9)])[0] for i in range(8)]
    assert together == alone


def test_ties_at_the_border_of_top_k_keep_the_lowest_ids():
    z = np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    assert filtered(z, SamplingParams(top_k=3)).tolist() == [1, 2, 4]


def test_top_p_always_keeps_the_likeliest_token():
    z = np.array([0.0, 9.0, 1.0])
    assert filtered(z, SamplingParams(top_p=1e-9)).tolist() == [1]


def test_top_p_near_one_needs_the_whole_tail():
    z = -np.arange(60.0)
    kept = filtered(z, SamplingParams(top_p=1 - 1e-12))
    assert 25 < len(kept) < 60
    assert kept.tolist() == list(range(len(kept)))


def test_masks_bias_and_penalties_act_in_order():
    row = np.array([1.0, -1.0, 2.0, 0.5], np.float32)
    d = Draw(
        0,
        SamplingParams(
            allowed_token_ids=[0, 1, 3],
            logit_bias={3: 1.5},
            repetition_penalty=2.0,
            frequency_penalty=0.25,
            presence_penalty=0.5,
        ),
        0,
        0,
        0,
        seen=np.array([1, 3]),
        output=np.array([3]),
        output_counts=np.array([2]),
    )
    assert process(row, d).tolist() == [1.0, -2.0, -np.inf, (0.5 + 1.5) / 2 - 2 * 0.25 - 0.5]


def test_forbidden_tokens_never_come():
    row = logits(4)
    best = int(row.argmax())
    assert token(row, temperature=0, forbidden=[best]) != best


def test_a_mask_acts_before_bias_and_keeps_the_models_shares():
    row = logits(5)
    allowed = np.zeros(512, bool)
    allowed[[3, 40, 77]] = True
    d = draw(logit_bias={9: 100.0})
    d.mask = np.packbits(allowed, bitorder="little").view(np.uint32)
    assert np.flatnonzero(process(row[0], d) > -np.inf).tolist() == [3, 40, 77]
    shares = np.exp(row[0, [3, 40, 77]].astype(float))
    found = []
    for position in range(4000):
        d.position = position
        found.append(sample(row, [d])[0].token)
    counts = [found.count(t) for t in (3, 40, 77)]
    assert sum(counts) == 4000
    assert np.allclose(np.array(counts) / 4000, shares / shares.sum(), atol=0.03)


def test_masks_that_leave_nothing_give_no_token():
    assert token(logits(1), temperature=0, allowed_token_ids=[5], forbidden=[5]) is None


def test_logprobs_are_those_of_the_unprocessed_logits_with_ranks():
    row = logits(6)
    reference = row[0].astype(np.float64) - np.log(np.exp(row[0].astype(np.float64)).sum())
    order = np.argsort(-row[0], kind="stable")
    target = int(order[40])
    entry = logprobs(row, np.array([target], np.int32), 5)[0]
    assert list(entry) == [*order[:5].tolist(), target]
    assert entry[target][1] == 41
    for t, (value, rank) in entry.items():
        assert value == pytest.approx(reference[t], abs=1e-9)
        assert order[rank - 1] == t


def test_a_target_among_the_likeliest_is_listed_once():
    row = logits(7)
    best = int(row.argmax())
    assert list(logprobs(row, np.array([best], np.int32), 1)[0]) == [best]
    assert logprobs(row, np.array([best], np.int32), 0)[0][best][1] == 1


def test_damaged_logits_are_an_error_and_not_a_token():
    row = logits(8)
    row[0, 5] = np.nan
    for params in ({"temperature": 0.0}, {"temperature": 1.0}):
        with pytest.raises(OckhamError, match="damaged"):
            token(row, **params)


def test_logprobs_of_tokens_that_were_asked_for_are_those_they_have_as_targets():
    row = np.random.default_rng(5).normal(size=(1, 300)).astype(np.float32)
    row[0, [7, 90]] = row[0, 40]  # ties
    asked = [7, 40, 90, 299]
    entry = logprobs(row, np.array([3], np.int32), 2, asked)[0]
    for token in asked:
        assert entry[token] == logprobs(row, np.array([token], np.int32), 0)[0][token]
