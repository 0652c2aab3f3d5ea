"""How a step's room for prompts is divided."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ockham.schedule.fcfs import FirstComeFirstServed


@dataclass
class Prompt:
    order: tuple[int, int]
    remaining_prefill: int
    arrival_s: float = 0.0


def prompts(needs):
    return [Prompt((i, 0), need) for i, need in enumerate(needs)]


def test_those_that_wait_for_a_prefix_are_passed_by_up_to_a_bound():
    waiting = prompts([10] * 200)
    policy = FirstComeFirstServed()
    asked = []

    def waits(candidate):
        asked.append(candidate)
        return 16 * (candidate.order[0] % 2)

    found = [candidate.order[0] for candidate in policy.order(waiting, waits)]
    assert found == list(range(0, 128, 2))
    assert len(asked) == 128


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(1, 256), st.randoms())
def test_shares_use_the_budget_and_no_more(needs, budget, random):
    candidates = prompts(needs)
    random.shuffle(candidates)
    shares = FirstComeFirstServed().share(candidates, budget)
    assert sum(shares) == min(budget, sum(needs))
    for candidate, share in zip(candidates, shares, strict=True):
        assert 0 <= share <= candidate.remaining_prefill
        if candidate.order == (0, 0):
            assert share >= min(candidate.remaining_prefill, (budget + 1) // 2)


def test_a_short_prompt_passes_a_long_one():
    assert FirstComeFirstServed().share(prompts([1000, 20]), 64) == [44, 20]


def test_prompts_behind_the_oldest_are_served_in_order():
    assert FirstComeFirstServed().share(prompts([1000, 30, 30]), 64) == [32, 30, 2]


def test_the_latest_arrival_gives_way():
    candidates = [Prompt((3, 0), 1), Prompt((7, 1), 1), Prompt((7, 0), 1)]
    assert FirstComeFirstServed().victim(candidates).order == (7, 1)
