"""The definitions of HyperAttention and Combiner, where they must be plain attention."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sublinear_attention import combiner, full, hyper, ranks, windowed


def heads(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, 16)).astype(np.float32) for _ in range(3)]


def slow(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention, one row after another."""
    rows = []
    for i in range(len(q)):
        weights = np.exp(k[: i + 1] @ q[i])
        rows.append(weights @ v[: i + 1] / weights.sum())
    return np.array(rows)


def test_full_attention_and_a_window_of_all_are_plain_attention() -> None:
    q, k, v = heads(100)
    for attention in (full, windowed(100, 0), windowed(1, 100)):
        out, products = attention(q, k, v)
        np.testing.assert_allclose(out, slow(q, k, v), atol=1e-4)
        assert products == 5050


def test_hyper_attention_is_plain_attention_where_nothing_is_left_out() -> None:
    """Below the exact length, and where blocks hold all keys: the halves are merged rightly."""
    q, k, v = heads(200)
    for attention in (hyper(16, 16, exact=200), hyper(64, 64, exact=25)):
        np.testing.assert_allclose(attention(q, k, v)[0], slow(q, k, v), atol=1e-4)


def test_sampled_keys_stand_for_all_others() -> None:
    """With equal keys any sample is exact, if the values are equal too; and it saves products."""
    q, _, _ = heads(512)
    same = np.ones((512, 16), np.float32)
    out, products = hyper(16, 16, exact=32)(q, same, same)
    np.testing.assert_allclose(out, same, atol=1e-5)
    assert products < 0.5 * 512 * 513 / 2


def test_neighbouring_ranks_differ_in_one_bit() -> None:
    rng = np.random.default_rng(1)
    projections = np.eye(7, dtype=np.float32)
    x = rng.standard_normal((4000, 7)).astype(np.float32)
    found, bits = ranks(x, projections), x > 0
    of_rank = {int(rank): row for rank, row in zip(found, bits, strict=True)}
    assert sorted(of_rank) == list(range(128))
    assert all((of_rank[n] != of_rank[n + 1]).sum() == 1 for n in range(127))


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_combiner_is_plain_attention_within_a_block_and_over_blocks_of_one(pooling: str) -> None:
    q, k, v = heads(96)
    for block in (96, 1):
        out, _ = combiner(block, pooling)(q, k, v)
        np.testing.assert_allclose(out, slow(q, k, v), atol=1e-4)


def test_a_block_of_equal_keys_is_one_key_by_its_mean() -> None:
    q, k, v = heads(64)
    k = np.repeat(k[::16], 16, axis=0)
    v = np.repeat(v[::16], 16, axis=0)
    out, products = combiner(16, "mean")(q, k, v)
    np.testing.assert_allclose(out, slow(q, k, v), atol=1e-4)
    assert products == 4 * 136 + 16 * (1 + 2 + 3) + 64
