"""Intervals hold what they promise: checked against published figures and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ockham.lab.statistics import (
    mean_ratio,
    paired_difference,
    paired_ratio,
    ratio_interval,
    student,
    wilson,
)


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_has_width_where_all_is_right_or_wrong() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    assert wilson(0, 0) is None


def test_the_paired_interval_knows_that_the_items_are_the_same() -> None:
    right = [1.0] * 50 + [0.0] * 50
    same = paired_difference(right, right)
    other = paired_difference(right, right[::-1])
    assert same is not None
    assert other is not None
    assert same[0] == -same[1]
    assert 0 < same[1] < 0.03
    assert other[1] > 0.15
    assert paired_difference([], []) is None


def test_paired_scores_must_be_pairs_of_shares() -> None:
    with pytest.raises(ValueError, match="of 2 and of 1"):
        paired_difference([0.0, 1.0], [0.0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        paired_difference([1.5], [0.0])


def test_a_paired_interval_covers_the_truth_at_its_rate() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        before = random.random(60) < 0.7
        after = np.where(random.random(60) < 0.15, random.random(60) < 0.3, before)
        interval = paired_difference(before.astype(float).tolist(), after.astype(float).tolist())
        assert interval is not None
        # An item changes in 15% of cases and is then right in 30%, from 70%.
        covered += interval[0] <= 0.15 * (0.3 - 0.7) <= interval[1]
    assert covered / 400 > 0.92


def test_a_ratio_of_sums_is_resampled_by_items() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        sizes = random.integers(5, 50, 40).astype(float)
        rates = random.normal(2.0, 0.5, 40)
        interval = ratio_interval((rates * sizes).tolist(), sizes.tolist(), seed=trial)
        assert interval is not None
        covered += interval[0] <= 2.0 <= interval[1]
    assert covered / 200 > 0.88
    assert ratio_interval([1.0], [2.0]) is None
    assert ratio_interval([0.0] * 5, [0.0] * 5) is None


def test_a_few_items_or_equal_ones_have_no_interval() -> None:
    """An interval from the lesser to the larger of two items would look like knowledge."""
    assert ratio_interval([1.0, 0.0, 1.0, 0.0], [1.0] * 4) is None
    assert ratio_interval([1.0, 0.0, 1.0, 0.0, 1.0], [1.0] * 5) is not None
    assert ratio_interval([2.0, 4.0, 6.0, 8.0, 10.0], [2.0, 4.0, 6.0, 8.0, 10.0]) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(30).tolist()
    ones = [1.0] * 30
    assert ratio_interval(values, ones, seed=5) == ratio_interval(values, ones, seed=5)
    assert ratio_interval(values, ones, seed=5) != ratio_interval(values, ones, seed=6)


def test_a_paired_ratio_has_the_spread_of_its_pairs() -> None:
    assert paired_ratio([2.0], [1.0]) == (2.0, None)
    centre, interval = paired_ratio([2.0, 4.0], [1.0, 2.0])
    assert centre == pytest.approx(2)
    assert interval == pytest.approx((2, 2))
    centre, interval = paired_ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert centre == pytest.approx(2)
    assert interval is not None
    assert interval[0] < 1 < 2 < interval[1]
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0], [0.0])


@pytest.mark.parametrize("freedom", [1, 2, 10, 11, 12, 30, 1000])
def test_student_is_that_of_scipy(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-4)


def test_a_mean_over_kinds_counts_each_kind_once() -> None:
    found = mean_ratio([[2.0, 2.0], [0.5, 0.5, 0.5, 0.5]])
    assert found.geometric == pytest.approx(1.0)
    assert found.arithmetic == pytest.approx(1.25)
    assert found.geometric_interval == pytest.approx((1.0, 1.0))
    with pytest.raises(ValueError, match="two ratios"):
        mean_ratio([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="positive"):
        mean_ratio([[1.0, 0.0]])


def test_the_mean_of_one_kind_is_its_ratio() -> None:
    speeds = [1.2, 1.5, 1.1, 1.9]
    found = mean_ratio([speeds])
    ratio, interval = paired_ratio(speeds, [1.0] * 4)
    assert found.geometric == pytest.approx(ratio)
    assert found.geometric_interval == pytest.approx(interval)


def test_the_interval_of_a_mean_over_kinds_covers_the_truth_at_its_rate() -> None:
    random = np.random.default_rng(11)
    truths, covered = np.array([1.0, 1.6, 3.0]), np.zeros(2)
    for _ in range(600):
        kinds = [
            (truth * np.exp(random.normal(0, spread, count))).tolist()
            for truth, spread, count in zip(truths, (0.02, 0.3, 0.2), (8, 6, 5), strict=True)
        ]
        found = mean_ratio(kinds)
        low, high = found.geometric_interval
        covered[0] += low <= np.exp(np.log(truths).mean()) <= high
        low, high = found.arithmetic_interval
        covered[1] += low <= truths.mean() <= high
    assert covered.min() / 600 > 0.92
    assert covered.max() / 600 < 0.985


def test_shares_of_several_questions_are_paired_like_single_ones() -> None:
    wide, narrow = (paired_difference([0.5] * items, [0.75] * items) for items in (5, 50))
    assert wide is not None
    assert narrow is not None
    assert wide[0] < 0 < narrow[0] < 0.25 < narrow[1] < wide[1]
