"""What a floor may say, and what it says of values."""

from __future__ import annotations

import math

import pytest

from ockham.core.errors import ConfigError
from ockham.plan.floors import parse_floors

TASKS = ("recall", "steps")


def test_a_floor_bounds_quality_speed_and_memory() -> None:
    floors = parse_floors("kl<=0.02, recall >= 95%, ttft_p95<=0.5,memory<=1.5G", TASKS)
    assert [floor.metric for floor in floors.of_quality] == ["kl", "recall"]
    assert [floor.metric for floor in floors.speeds] == ["ttft_p95", "memory"]
    recall, memory = floors.scores[0], floors.speeds[1]
    assert recall.relative
    assert recall.value == pytest.approx(0.95)
    assert memory.value == 1.5 * (1 << 30)
    assert parse_floors(str(floors), TASKS) == floors


def test_values_hold_or_miss() -> None:
    floors = parse_floors("kl<=0.02,agreement>=0.9", TASKS)
    assert not floors.missed({"kl": 0.02, "agreement": 0.95})
    assert [floor.metric for floor in floors.missed({"kl": 0.03, "agreement": 0.95})] == ["kl"]
    assert [floor.metric for floor in floors.missed({"agreement": 0.8})] == ["agreement"]
    assert len(floors.missed({"kl": math.nan})) == 1
    assert floors.every[0].slack(0.03) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl", "is no floor"),
        ("kl<0.02", "is no floor"),
        ("kl>=0.02", "kl<=VALUE"),
        ("ttft_p95>=0.5", "ttft_p95<=VALUE"),
        ("recall<=0.5", "recall>=VALUE"),
        ("reccall>=0.5", "is no metric"),
        ("kl<=much", "write a number"),
        ("kl<=-1", "positive number"),
        ("kl<=nan", "positive number"),
        ("kl<=inf", "positive number"),
        ("ttft_p95<=0", "positive number"),
        ("memory<=2X", "512M or 2G"),
        ("memory<=G", "512M or 2G"),
        ("recall>=1.5", "nothing above 1"),
        ("agreement>=2", "nothing above 1"),
        ("kl<=0.02,kl<=0.03", "bounds kl twice"),
        ("ttft_p50<=2,ttft_p95<=1", "contradict"),
        ("ttft_p95<=2,e2e_p95<=1", "contradict"),
        ("kl<=0.5,kl_p99<=0.1", "contradict"),
    ],
)
def test_what_is_no_floor_is_refused_with_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_floors(text, TASKS)


def test_no_floor_bounds_nothing() -> None:
    assert parse_floors(" ", TASKS).every == ()
