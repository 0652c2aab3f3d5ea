"""How a step's room for prompts is divided, and who is passed by."""

from hypothesis import given
from hypothesis import strategies as st

from ockham.schedule.fcfs import FirstComeFirstServed
from tests.helpers.candidates import Prompt, policy_of


def prompts(needs, tenants=()):
    return [
        Prompt((i, 0), tenant=tenants[i] if tenants else "", remaining_prefill=need)
        for i, need in enumerate(needs)
    ]


def share(candidates, budget):
    return FirstComeFirstServed().share(candidates, budget)


def test_those_that_wait_for_a_prefix_are_passed_by_up_to_a_bound():
    policy = policy_of(FirstComeFirstServed(), prompts([10] * 200))
    asked = []

    def waits(candidate):
        asked.append(candidate)
        return 16 * (candidate.order[0] % 2)

    found = [candidate.order[0] for candidate in policy.order(lambda each: True, waits, False)]
    assert found == list(range(0, 128, 2))
    assert len(asked) == 128


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(1, 256), st.randoms())
def test_shares_use_the_budget_and_no_more(needs, budget, random):
    candidates = prompts(needs)
    random.shuffle(candidates)
    shares = share(candidates, budget)
    assert sum(shares) == min(budget, sum(needs))
    for candidate, rows in zip(candidates, shares, strict=True):
        assert 0 <= rows <= candidate.remaining_prefill
        if candidate.order == (0, 0):
            assert rows >= min(candidate.remaining_prefill, (budget + 1) // 2)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abc")), min_size=1, max_size=12),
    st.integers(3, 256),
)
def test_no_tenant_that_needs_more_gets_less_than_another(needs, budget):
    candidates = prompts([need for need, _ in needs], [tenant for _, tenant in needs])
    shares = share(candidates, budget)
    assert sum(shares) == min(budget, sum(need for need, _ in needs))
    rows = {name: 0 for _, name in needs}
    wanted = dict(rows)
    for candidate, given_rows in zip(candidates, shares, strict=True):
        assert 0 <= given_rows <= candidate.remaining_prefill
        rows[candidate.tenant] += given_rows
        wanted[candidate.tenant] += candidate.remaining_prefill
    most = max(rows.values())
    assert all(rows[name] in (wanted[name], most, most - 1) for name in rows)


def test_a_short_prompt_passes_a_long_one():
    assert share(prompts([1000, 20]), 64) == [44, 20]


def test_a_short_prompt_passes_any_number_of_long_ones():
    shares = share(prompts([7000] * 9 + [20]), 512)
    assert shares[0] == 256
    assert shares[-1] == 20


def test_prompts_behind_the_oldest_are_served_alike():
    assert share(prompts([1000, 30, 30]), 64) == [32, 16, 16]


def test_a_step_of_fewer_rows_than_tenants_serves_the_oldest():
    assert share(prompts([9, 1, 5], "abc"), 2) == [1, 1, 0]


def test_the_latest_arrival_gives_way():
    candidates = [Prompt((3, 0)), Prompt((7, 1)), Prompt((7, 0))]
    policy = FirstComeFirstServed()
    for candidate in candidates:
        policy.begin(candidate)
    assert policy.victim(candidates).order == (7, 1)
