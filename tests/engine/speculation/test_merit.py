"""A drafter that costs more than it gains is left alone, ever longer; one that gains is not."""

from __future__ import annotations

from ockham.engine.speculation.merit import Merit


def asked(merit: Merit, gains: list[float], cost_s: float) -> list[bool]:
    """Of each step, whether it was asked, where it gains so much in each."""
    found = []
    for step, gain_s in enumerate(gains):
        rests = merit.rests(step)
        found.append(not rests)
        if not rests:
            merit.book(step, gain_s, cost_s)
    return found


def test_one_that_pays_is_always_asked() -> None:
    assert all(asked(Merit(), [3.0, 0.0] * 500, 1.0))


def test_one_that_never_pays_is_asked_ever_more_rarely() -> None:
    found = asked(Merit(), [0.0] * 20_000, 1.0)
    assert sum(found[:100]) <= 24
    assert 0 < sum(found[10_000:]) <= 16
    assert sum(found) < 0.01 * len(found)


def test_one_that_begins_to_pay_is_noticed() -> None:
    found = asked(Merit(), [0.0] * 1000 + [3.0] * 5000, 1.0)
    assert all(found[3000:])


def test_what_pays_goes_on_after_it_was_held_up() -> None:
    """The process stood still for a minute while it proposed, once in 100 proposals."""
    merit = Merit()
    for step in range(2000):
        assert not merit.rests(step)
        merit.book(step, 3.0, 60.0 if step % 100 == 50 else 1.0)
