"""The tests behind the guard: what is claimed of their alarms, on simulated texts."""

from __future__ import annotations

import numpy as np
import pytest

from ockham.core.sequential import (
    HIGH_STAKES,
    LIMIT,
    MOST,
    STAKES,
    SURE,
    Detector,
    Recovery,
    bet_on_loss,
    bet_on_recovery,
)


def losses(seed: int, mean: float, tests: int, units: int, spread: float = 0.0) -> np.ndarray:
    """Sums of the losses of units of 16 positions, (tests, units). With a `spread` each unit has a
    rate of its own, so that positions of one unit depend on one another."""
    rng = np.random.default_rng(seed)
    rate = np.full((tests, units), mean)
    if spread:
        rate = rng.beta(mean / spread, (1 - mean) / spread, (tests, units))
    return rng.binomial(MOST, rate).astype(float)


def alarms(sums: np.ndarray, bound: float) -> np.ndarray:
    """Of each test the unit of its alarm, counted from 1; 0 for none."""
    capitals = np.zeros((len(sums), len(STAKES)))
    found = np.zeros(len(sums), int)
    for unit in range(sums.shape[1]):
        capitals = bet_on_loss(capitals, sums[:, unit], np.full(len(sums), float(MOST)), bound)
        found[(found == 0) & (capitals.sum(axis=1) >= LIMIT)] = unit + 1
    return found


@pytest.mark.parametrize("bound", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_false_alarms_at_the_bound_are_at_most_what_the_theory_says(
    bound: float, spread: float
) -> None:
    """10,000 positions, independent ones and ones that are bad together."""
    units = 10_000 // MOST
    found = alarms(losses(1, bound, 2000, units, spread), bound)
    share, claimed = np.mean(found > 0), units / LIMIT
    assert share <= claimed + 3 * np.sqrt(claimed / 2000)


def test_a_technique_above_its_floor_gives_no_alarm_in_ten_thousand_positions() -> None:
    assert not alarms(losses(2, 0.015, 2000, 10_000 // MOST), 0.03).any()


@pytest.mark.parametrize("good", [0.01, 0.03])
def test_five_points_are_found_within_500_positions_whatever_went_before(good: float) -> None:
    before, after = 300, 200
    sums = np.concatenate([losses(3, good, 1000, before), losses(4, 0.08, 1000, after)], axis=1)
    found = alarms(sums, 0.03)
    late = found[(found == 0) | (found > before)]
    delays = MOST * np.where(late == 0, after, late - before)
    assert delays.mean() < 400
    assert np.mean(delays <= 500) > 0.85


def test_the_detector_is_one_of_many() -> None:
    sums = losses(5, 0.08, 1, 60)[0]
    capitals, detector = np.zeros(len(STAKES)), Detector(0.03)
    for loss in sums:
        capitals = bet_on_loss(capitals, np.array(loss), np.array(16.0), 0.03)
        alarmed = detector.add(loss, MOST)
        assert detector.capital == pytest.approx(capitals.sum())
    assert alarmed
    assert detector.alarmed


def test_a_short_text_says_less_than_a_long_one() -> None:
    short, long = Detector(0.03), Detector(0.03)
    short.add(0.0, 2)
    long.add(0.0, MOST)
    assert 1.0 > short.capital > long.capital


def test_the_capital_stays_finite_whatever_comes() -> None:
    detector = Detector(0.001)
    for _ in range(500):
        detector.add(float(MOST), MOST)
    assert np.isfinite(detector.capital)


def recoveries(sums: np.ndarray, bound: float) -> np.ndarray:
    capitals = np.full((len(sums), len(HIGH_STAKES)), 1.0 / len(HIGH_STAKES))
    found = np.zeros(len(sums), int)
    for unit in range(sums.shape[1]):
        capitals = bet_on_recovery(capitals, sums[:, unit], np.full(len(sums), float(MOST)), bound)
        found[(found == 0) & (capitals.sum(axis=1) >= SURE)] = unit + 1
    return found


def test_what_is_not_above_the_floor_comes_back_once_in_twenty_at_most() -> None:
    for spread in (0.0, 0.2):
        found = recoveries(losses(6, 0.03, 2000, 512, spread), 0.03)
        assert np.mean(found > 0) <= 1 / SURE + 0.02


def test_what_is_above_the_floor_comes_back_within_a_probation() -> None:
    found = recoveries(losses(7, 0.01, 500, 512), 0.03)
    assert np.mean(found > 0) > 0.97
    recovery = Recovery(0.03)
    units = 0
    while not recovery.add(0.0, MOST):
        units += 1
    assert 100 < units < 140
