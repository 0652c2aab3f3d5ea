"""Those that share a prefix run together, and nobody is overtaken without a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ockham.schedule.lpm import LEAST_SHARED, MOST_OVERTAKEN, LongestPrefixMatch, _Places
from ockham.schedule.tenants import MOST_WAITS
from tests.helpers.candidates import Prompt, nobody
from tests.helpers.candidates import admit as admit_of
from tests.helpers.candidates import policy_of as with_waiting


def document(number: int, tokens: int = 40) -> list[int]:
    return np.random.default_rng(number).integers(0, 5000, tokens).tolist()


def queue(prompts: Sequence[list[int]], salts: Sequence[str] = ()) -> list[Prompt]:
    return [
        Prompt((i, 0), np.array(tokens, np.int32), salt=salts[i] if salts else "")
        for i, tokens in enumerate(prompts)
    ]


def admit(
    policy: LongestPrefixMatch,
    waiting: list[Prompt],
    most: int,
    waits: Callable[[Prompt], int] = nobody,
) -> list[int]:
    """What one step begins, by number; it ends at once."""
    taken = admit_of(policy, most, waits)
    for candidate in taken:
        policy.end(candidate)
        waiting.remove(candidate)
    return [candidate.order[0] for candidate in taken]


def policy_of(waiting: list[Prompt]) -> LongestPrefixMatch:
    return with_waiting(LongestPrefixMatch(), waiting)


def test_a_group_is_finished_before_the_next_begins() -> None:
    waiting = queue([[*document(i % 3), i] for i in range(12)])
    policy = policy_of(waiting)
    found = [number for _ in range(6) for number in admit(policy, waiting, 2)]
    assert [number % 3 for number in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert not waiting


def test_the_longer_prefix_goes_first() -> None:
    system = document(0)
    prompts = [[*system, *document(d), q] for q, d in enumerate([1, 2, 1, 2, 1])]
    waiting = queue([*prompts, document(9)])
    assert admit(policy_of(waiting), waiting, 6) == [0, 2, 4, 1, 3, 5]


def test_where_nothing_is_shared_it_is_the_order_of_arrival() -> None:
    waiting = queue([[1, 2, 3, *document(i)] for i in range(50)])
    assert admit(policy_of(waiting), waiting, 50) == list(range(50))


def test_tenants_are_no_group() -> None:
    waiting = queue([document(0)] * 4, ["a", "b", "a", "b"])
    assert admit(policy_of(waiting), waiting, 4) == [0, 2, 1, 3]


def test_what_was_preempted_goes_first() -> None:
    waiting = queue([[*document(i % 2), i] for i in range(6)])
    policy = policy_of(waiting)
    assert admit(policy, waiting, 1) == [0]
    back = Prompt((0, 1), np.array(document(7), np.int32), computed_once=5)
    waiting.insert(0, back)
    policy.add(back)
    assert admit(policy, waiting, 3) == [0, 2, 4]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_everyone_is_admitted_within_the_bound(groups, seats, random) -> None:
    """While others of one group keep coming, which would go before everyone else."""
    policy, waiting = LongestPrefixMatch(), []
    numbers = 0
    admitted: list[int] = []
    before: dict[int, int] = {}
    for group in groups:
        for g in (group, 0, 0):
            made = Prompt((numbers, 0), np.array([*document(g), numbers], np.int32))
            before[numbers] = len(waiting) + len(admitted)
            waiting.append(made)
            policy.add(made)
            numbers += 1
        admitted += admit(policy, waiting, random.randint(0, seats))
    while waiting:
        admitted += admit(policy, waiting, seats)
    assert sorted(admitted) == list(range(numbers))
    assert len(admitted) == numbers


def test_the_oldest_is_overtaken_so_often_and_no_more() -> None:
    policy, waiting = LongestPrefixMatch(), queue([[*document(0), 0], document(1), document(2)])
    for candidate in waiting:
        policy.add(candidate)
    found = admit(policy, waiting, 1)
    for number in range(3, 400):
        made = Prompt((number, 0), np.array([*document(0), number], np.int32))
        waiting.append(made)
        policy.add(made)
        found += admit(policy, waiting, 1)
    assert found.index(1) == MOST_OVERTAKEN + 1
    # Once it was its turn, the order of arrival goes on where nothing was shared with it.
    assert found.index(2) == MOST_OVERTAKEN + 2


def test_those_that_wait_for_the_same_prefix_are_asked_once() -> None:
    waiting = queue([[*document(0), i] for i in range(5000)] + [document(1)])
    policy = policy_of(waiting)
    asked = []

    def waits(candidate: Prompt) -> int:
        asked.append(candidate)
        return 40 if len(asked) > 1 and candidate.prompt[0] == waiting[0].prompt[0] else 0

    assert admit(policy, waiting, 3, waits) == [0]
    assert len(asked) == 2
    # Those of another prefix need not wait, as long as they are not behind too many.
    waiting = queue([[*document(0), i] for i in range(200)] + [document(1)])
    policy, asked = policy_of(waiting), []
    assert admit(policy, waiting, 3, waits) == [0, 200]


def test_an_orderly_batch_begins_no_branch_while_another_waits() -> None:
    waiting = queue([[*document(i % 2), i] for i in range(6)])
    for candidate in waiting:
        candidate.orderly = True
    policy = policy_of(waiting)

    def waits(candidate: Prompt) -> int:
        return 40 if len(waiting) == 5 and candidate.order[0] % 2 == 0 else 0

    assert admit(policy, waiting, 1) == [0]
    assert admit(policy, waiting, 6, waits) == []
    assert admit(policy, waiting, 6) == [2, 4, 1, 3, 5]


def test_a_step_asks_of_no_more_than_a_bounded_number() -> None:
    waiting = queue([document(i) for i in range(3000)])
    asked = []

    def waits(candidate: Prompt) -> int:
        asked.append(candidate)
        return LEAST_SHARED

    assert admit(policy_of(waiting), waiting, 8, waits) == []
    assert len(asked) == MOST_WAITS


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=12))
def test_places_are_a_set_of_numbers(runs) -> None:
    places, plain = _Places(), set()
    for low, length in runs:
        places.add(low, low + length)
        plain.update(range(low, low + length))
    for place in range(40):
        assert (place in places) == (place in plain)
        assert places.after(place) == min(set(range(50)) - plain - set(range(place)))
        below = set(range(place)) - plain
        assert places.before(place) == max(below, default=-1)
