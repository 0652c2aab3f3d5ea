"""From hidden states to vectors and scores, however the rows are cut into steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.core.arrays import Floats
from ockham.core.errors import InvalidRequest
from ockham.core.pooling import PoolingParams
from ockham.engine.pooling import Pool, Pooler
from ockham.kernels.ops.dense import Dense
from ockham.model.program.pooling import How, PoolingDescription

HOWS: list[How] = ["cls", "mean", "mean_sqrt_len", "weighted_mean", "max", "last"]
EMBED = PoolingParams(task="embed", normalize=False)


def pooler(how: How = "mean", **fields: object) -> Pooler:
    return Pooler(PoolingDescription(how, **fields), (), 5)  # type: ignore[arg-type]


def fed(pool: Pool, states: Floats, cuts: list[int]) -> Pool:
    """The pool of a text whose rows come in steps that end at `cuts`, and at the end."""
    done = 0
    for end in [*cuts, len(states)]:
        rows = pool.rows(done, end - done, len(states) - done)
        if len(rows):
            pool.add(states[done + rows.start : done + rows.stop])
        done = end
    return pool


def plainly(how: How, states: Floats, skip: int = 0) -> Floats:
    """The rule, in double."""
    wide = states.astype(np.float64)[skip:]
    if how == "cls":
        return states[0]
    if how == "last":
        return states[-1]
    if how == "max":
        return states.max(axis=0)
    weights = np.ones(len(wide))
    if how == "weighted_mean":
        weights = np.arange(1.0, len(states) + 1)[skip:]
    total = np.zeros(wide.shape[1])
    for weight, row in zip(weights, wide, strict=True):
        total = total + weight * row
    by = np.sqrt(len(wide)) if how == "mean_sqrt_len" else weights.sum()
    mean: Floats = (total / by).astype(np.float32)
    return mean


@given(st.data(), st.sampled_from(HOWS), st.integers(1, 40), st.integers(0, 1000))
def test_no_cutting_into_steps_changes_a_bit(data, how, length, seed):
    states = np.random.default_rng(seed).standard_normal((length, 5)).astype(np.float32)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6))) if length > 1 else []
    found = pooler(how).answer(fed(pooler(how).open(EMBED), states, cuts).finish(), EMBED)
    assert found.tobytes() == plainly(how, states).tobytes()
    again = fed(pooler(how).open(EMBED), states, cuts[:1])
    again.reset()  # as after a preemption
    assert pooler(how).answer(fed(again, states, []).finish(), EMBED).tobytes() == found.tobytes()


@pytest.mark.parametrize("how", ["mean", "weighted_mean", "mean_sqrt_len"])
def test_an_instruction_is_left_out_where_the_checkpoint_says_so(how: How) -> None:
    states = np.random.default_rng(3).standard_normal((9, 5)).astype(np.float32)
    without = pooler(how, include_prompt=False)
    found = without.answer(fed(without.open(EMBED, 4), states, [2, 7]).finish(), EMBED)
    assert found.tobytes() == plainly(how, states, 4).tobytes()
    whole = pooler(how)
    kept = whole.answer(fed(whole.open(EMBED, 4), states, [2]).finish(), EMBED)
    assert kept.tobytes() == plainly(how, states).tobytes()
    with pytest.raises(InvalidRequest, match="no tokens behind its prompt"):
        without.answer(fed(without.open(EMBED, 9), states, []).finish(), EMBED)


def test_embeddings_are_cut_before_they_get_length_one() -> None:
    states = np.array([[3, 4, 12, 0, 0]], np.float32)
    rule = pooler("last", normalise=True)

    def found(**fields: object) -> list[float]:
        params = PoolingParams(task="embed", **fields)  # type: ignore[arg-type]
        return rule.answer(fed(rule.open(params), states, []).finish(), params).tolist()

    assert found(dimensions=2) == pytest.approx([0.6, 0.8])
    assert found(dimensions=2, normalize=False) == [3, 4]
    assert found() == pytest.approx([3 / 13, 4 / 13, 12 / 13, 0, 0])


def test_each_token_has_an_embedding_of_its_own() -> None:
    states = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    params = PoolingParams(task="token_embed", dimensions=3)
    rule = pooler("cls", normalise=True)
    found = rule.answer(fed(rule.open(params), states, [1, 4]).finish(), params)
    expected = states[:, :3] / np.linalg.norm(states[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class Weights:
    """A matrix in rows, as a Dense multiplies with it."""

    def __init__(self, values: list[list[float]]) -> None:
        self.values = np.array(values, np.float32)
        self.out_features = len(values)

    def matmul(self, x: Floats) -> Floats:
        return x @ self.values.T


def classifier(values: list[list[float]], **fields: object) -> Pooler:
    dense = Dense(Weights(values), np.zeros(len(values), np.float32))  # type: ignore[arg-type]
    description = PoolingDescription("cls", classifies=True, **fields)  # type: ignore[arg-type]
    return Pooler(description, (dense,), 2)


def answer(rule: Pooler, **fields: object) -> list[float]:
    params = PoolingParams(**fields)  # type: ignore[arg-type]
    return rule.answer(
        fed(rule.open(params), np.array([[1, 2]], np.float32), []).finish(), params
    ).tolist()


def test_classes_have_probabilities_and_one_class_is_a_score() -> None:
    three = classifier([[1, 0], [0, 1], [1, 1]])
    assert three.tasks == ("classify",)
    assert answer(three, task="classify", use_activation=False) == [1, 2, 3]
    found = answer(three, task="classify")
    assert sum(found) == pytest.approx(1)
    assert found[2] / found[0] == pytest.approx(np.exp(2))
    one = classifier([[1, -1]])
    assert one.tasks == ("score", "classify")
    assert answer(one, task="score") == pytest.approx([1 / (1 + np.e)])
    assert answer(one, task="score", use_activation=False) == [-1]
    assert answer(classifier([[1, -1]], score="identity"), task="score") == [-1]
    independent = answer(classifier([[1, 0], [0, 1]], score="sigmoid"), task="classify")
    assert independent == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))])


def test_a_judge_gives_the_probability_of_one_answer() -> None:
    judge = classifier([[0, 1], [1, 1]], score_label=1)
    assert judge.tasks == ("score", "classify")
    assert answer(judge, task="score") == pytest.approx([1 / (1 + np.exp(-1))])


@pytest.mark.parametrize(
    ("rule", "fields", "message"),
    [
        (pooler(), {"task": "classify"}, "does embed and token_embed, and not classify"),
        (pooler(), {"task": "embed", "dimensions": 6}, "have 5 values"),
        (classifier([[1, 0], [0, 1]]), {"task": "score"}, "does classify, and not score"),
    ],
)
def test_what_a_model_cannot_do_is_said(rule, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        rule.check(PoolingParams(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "embedding"}, "task must be one of embed, token_embed, classify, score"),
        ({"task": "embed", "dimensions": 0}, "positive integer, got 0"),
        ({"dimensions": True}, "positive integer, got True"),
        ({"task": "score", "dimensions": 3}, "dimensions are of embeddings"),
    ],
)
def test_parameters_that_cannot_be_are_refused(fields, message):
    with pytest.raises(InvalidRequest, match=message):
        PoolingParams(**fields)
