"""The watch over approximate techniques: when one is switched off, and how it comes back."""

from __future__ import annotations

from random import Random

import pytest

from ockham.core.floors import Floors
from ockham.engine.watching import (
    LONGEST_REST_S,
    MOST_USES,
    PROBATION_SHARE,
    PROBATION_TEXTS,
    Use,
    Watch,
    Watchlist,
)

USE = Use(("keep/short",), "keep/short:{}", "chat, short")
FLOORS = Floors(0.97, 0.02)
REST_S = 100.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch_of(clock: Clock, floors: Floors = FLOORS, share: float = 0.5) -> Watch:
    return Watch(USE, floors, share, REST_S, clock)


def episode(watch: Watch) -> int:
    return watch.admit(Random(0)).episode


def fail(watch: Watch) -> int:
    """Give bad texts until it is off; how many that took."""
    now = episode(watch)
    for texts in range(1, 200):
        if watch.add_agreement(10, 16, now):
            return texts
    raise AssertionError("it is not switched off")


def test_a_bad_technique_is_switched_off_and_a_good_one_is_not(clock: Clock) -> None:
    good, bad = watch_of(clock), watch_of(clock)
    for _ in range(2000):
        assert good.add_agreement(16, 16, episode(good)) is None
    assert good.state == "on"
    assert good.evidence < 0.01
    assert fail(bad) < 12
    assert bad.state == "off"
    assert not bad.admit(Random(0)).served
    assert bad.found.left_out == 1


def test_a_long_good_past_is_no_head_start(clock: Clock) -> None:
    fresh, old = watch_of(clock), watch_of(clock)
    for _ in range(1000):
        old.add_agreement(16, 16, episode(old))
    assert fail(old) <= fail(fresh) + 1


def test_a_divergence_over_its_floor_switches_off_too(clock: Clock) -> None:
    watch = watch_of(clock, Floors(kl=0.02))
    assert any(watch.add_kl([0.2] * 16, episode(watch)) for _ in range(50))
    assert watch.state == "off"
    fine = watch_of(clock)
    assert not any(fine.add_kl([0.01] * 16, episode(fine)) for _ in range(1000))
    assert fine.found.kl == pytest.approx(0.01)


def test_one_wild_position_is_not_enough(clock: Clock) -> None:
    watch = watch_of(clock)
    assert watch.add_kl([50.0, *[0.001] * 15], episode(watch)) is None
    assert watch.state == "on"


def test_the_share_of_texts_is_chosen_by_lot(clock: Clock) -> None:
    watch, lot = watch_of(clock, share=0.1), Random(3)
    scored = sum(watch.admit(lot).scored for _ in range(5000))
    assert 400 < scored < 600


def test_it_rests_is_tried_by_some_and_comes_back(clock: Clock) -> None:
    watch, lot = watch_of(clock), Random(1)
    fail(watch)
    clock.now_s += REST_S - 1
    assert not watch.rested()
    clock.now_s += 1
    assert watch.rested()
    assert watch.state == "probation"
    admitted = [watch.admit(lot) for _ in range(4000)]
    served = [each for each in admitted if each.served]
    assert len(served) == pytest.approx(4000 * PROBATION_SHARE, rel=0.2)
    assert all(each.scored for each in served)
    told = [watch.add_agreement(16, 16, episode(watch)) for _ in range(150)]
    assert "agreement is above 0.97 again" in told
    assert watch.state == "on"
    assert watch.admit(lot).served


def test_what_fails_its_probation_rests_for_twice_as_long(clock: Clock) -> None:
    watch = watch_of(clock)
    fail(watch)
    rests = []
    for _ in range(3):
        began_s = clock.now_s
        while not watch.rested():
            clock.now_s += 10
        rests.append(clock.now_s - began_s)
        fail(watch)
    assert rests == [REST_S, 2 * REST_S, 4 * REST_S]
    for _ in range(20):
        clock.now_s += LONGEST_REST_S
        assert watch.rested()
        fail(watch)


def test_a_probation_that_shows_nothing_ends(clock: Clock) -> None:
    """At the floor itself neither test says anything, as a rule."""
    watch = watch_of(clock)
    fail(watch)
    clock.now_s += REST_S
    assert watch.rested()
    texts = 0
    while watch.state == "probation":
        texts += 1
        watch.add_agreement(16 - (texts % 2), 16, episode(watch))
    assert texts == PROBATION_TEXTS
    assert watch.state == "off"


def test_texts_of_an_earlier_state_say_nothing_of_the_later_one(clock: Clock) -> None:
    watch = watch_of(clock)
    before = episode(watch)
    fail(watch)
    clock.now_s += REST_S
    assert watch.rested()
    for _ in range(500):
        assert watch.add_agreement(16, 16, before) is None
        assert watch.add_kl([5.0], before) is None
    assert watch.state == "probation"


def test_uses_are_bounded_and_the_rarest_gives_way(clock: Clock) -> None:
    watches, lot = Watchlist(FLOORS, 0.5, REST_S, clock), Random(0)
    common = watches.of(USE)
    assert common is not None
    for _ in range(3):
        common.admit(lot)
    for number in range(3 * MOST_USES):
        rare = watches.of(Use(("keep/short",), str(number), "chat, short"))
        assert rare is not None
        rare.admit(lot)
    assert len(watches.found()) == MOST_USES
    assert watches.of(USE) is common


def test_what_is_switched_off_gives_way_to_nothing(clock: Clock) -> None:
    watches = Watchlist(FLOORS, 0.5, REST_S, clock)
    for number in range(MOST_USES):
        watch = watches.of(Use(("keep/short",), str(number), "chat, short"))
        assert watch is not None
        fail(watch)
    assert watches.of(USE) is None


def test_what_happens_is_told_once(clock: Clock) -> None:
    watches = Watchlist(FLOORS, 0.5, REST_S, clock)
    watch = watches.of(USE)
    assert watch is not None
    watches.tell(watch, "off", None)
    assert not watches.events
    watches.tell(watch, "off", "agreement is under 0.97")
    assert [event.reason for event in watches.events] == ["agreement is under 0.97"]
