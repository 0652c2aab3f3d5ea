"""The plan of a batch: its trie, an order that uses each prefix up, and who is left to use it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ockham.engine.offline import Plan, plan_batch

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=20)


def plan_of(prompts: list[list[int]], generated: list[int] | None = None) -> Plan:
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    return plan_batch(arrays, generated or [8] * len(prompts))


def prefixes(prompts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(p[: n + 1]) for p in prompts for n in range(len(p))}


@given(PROMPTS, st.data())
def test_every_prefix_is_counted_once_and_used_up_before_the_next(prompts, data) -> None:
    generated = data.draw(
        st.lists(st.integers(1, 50), min_size=len(prompts), max_size=len(prompts))
    )
    plan = plan_of(prompts, generated)
    assert sorted(plan.order) == list(range(len(prompts)))
    assert plan.tokens == len(prefixes(prompts))
    for prefix in prefixes(prompts):
        users = [tuple(prompts[i][: len(prefix)]) == prefix for i in plan.order]
        first, last = users.index(True), len(users) - users[::-1].index(True)
        assert all(users[first:last]), "those that share a prefix stand together"


@given(PROMPTS, st.randoms(use_true_random=False))
def test_what_others_still_begin_with_is_kept(prompts, random) -> None:
    plan = plan_of(prompts)
    left = list(range(len(prompts)))
    random.shuffle(left)
    while left:
        number = left.pop()
        others = prefixes([prompts[i] for i in left])
        kept = [
            n
            for n in range(len(prompts[number]) + 1)
            if n == 0 or tuple(prompts[number][:n]) in others
        ]
        assert plan.done(number) == max(kept)


def test_those_that_generate_much_for_what_they_read_go_first() -> None:
    prompts = [[1] * 50, [2, 2, 3], [2, 2, 4], [5] * 10]
    assert plan_of(prompts, [10, 1, 1, 100]).order == [3, 1, 2, 0]


def test_a_batch_of_equal_prompts_is_in_order() -> None:
    plan = plan_of([[1, 2, 3]] * 5)
    assert plan.order == [0, 1, 2, 3, 4]
    assert plan.tokens == 3
