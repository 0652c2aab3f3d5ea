"""Tenants take turns: nobody waits for the length of another's queue; no place goes to and fro."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.core.seams import Policy
from ockham.schedule.fcfs import FirstComeFirstServed
from ockham.schedule.lpm import LongestPrefixMatch
from ockham.schedule.tenants import QUANTUM_TOKENS
from tests.helpers.candidates import Prompt, admit, policy_of

POLICIES = (FirstComeFirstServed, LongestPrefixMatch)
LONGEST, MOST_NEW = 2000, 200


def made(number: int, tenant: str, **values: object) -> Prompt:
    tokens = np.random.default_rng(number).integers(0, 5000, 20).astype(np.int32)
    return Prompt((number, 0), tokens, tenant=tenant, **values)  # type: ignore[arg-type]


def begun(policy: Policy, most: int) -> list[tuple[str, int]]:
    return [(c.tenant, c.order[0]) for c in admit(policy, most)]


def run_to_the_end(policy: Policy, candidate: Prompt) -> None:
    candidate.computed += candidate.remaining_prefill + candidate.remaining_tokens
    candidate.generated += candidate.remaining_tokens
    policy.end(candidate)


@pytest.mark.parametrize("kind", POLICIES)
@settings(max_examples=25, deadline=None)
@given(tenants=st.integers(1, 5), seats=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_how_long_one_waits_does_not_depend_on_the_queues_of_others(
    kind: type[Policy], tenants: int, seats: int, seed: int
) -> None:
    """While one tenant queues more than ever runs, what others begin before the first of a tenant
    is bounded by the number of tenants."""
    random = Random(seed)
    policy, running, number = kind(), [], 0
    first_since: dict[str, float] = {}  # of a tenant's first: what others had begun
    waiting: dict[str, list[Prompt]] = {f"t{i}": [] for i in range(tenants)} | {"flood": []}
    spent: dict[str, float] = dict.fromkeys(waiting, 0.0)
    dearest = LONGEST + MOST_NEW
    bound = (tenants + 1) * (dearest / QUANTUM_TOKENS + 2) * (QUANTUM_TOKENS + dearest)

    def arrive(tenant: str) -> None:
        nonlocal number
        prompt = made(
            number,
            tenant,
            remaining_prefill=random.randint(1, LONGEST),
            remaining_tokens=random.randint(1, MOST_NEW),
        )
        number += 1
        policy.add(prompt)
        waiting[tenant].append(prompt)

    def others(tenant: str) -> float:
        return sum(spent.values()) - spent[tenant]

    for step in range(200):
        for _ in range(20 if step < 40 else 0):
            arrive("flood")
        for i in range(tenants):
            if random.random() < 0.2:
                arrive(f"t{i}")
        for tenant, queue in waiting.items():
            if queue:
                first_since.setdefault(tenant, others(tenant))
                assert others(tenant) - first_since[tenant] <= bound, tenant
        for candidate in admit(policy, seats - len(running), held=0):
            tenant = candidate.tenant
            waiting[tenant].remove(candidate)
            spent[tenant] += candidate.remaining_prefill + candidate.remaining_tokens
            first_since.pop(tenant, None)
            running.append(candidate)
        for candidate in random.sample(running, len(running) // 2 + len(running) % 2):
            running.remove(candidate)
            run_to_the_end(policy, candidate)


@pytest.mark.parametrize("kind", POLICIES)
def test_tenants_share_by_tokens(kind: type[Policy]) -> None:
    policy, spent = kind(), {"long": 0, "short": 0}
    for number in range(800):
        name = "long" if number % 8 == 0 else "short"
        rows = 1000 if name == "long" else 100
        policy.add(made(number, name, remaining_prefill=rows, remaining_tokens=1))
    for _ in range(200):
        (candidate,) = admit(policy, 1, held=0)
        spent[candidate.tenant] += candidate.remaining_prefill
        run_to_the_end(policy, candidate)
    assert abs(spent["long"] - spent["short"]) <= 2 * (1000 + QUANTUM_TOKENS)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_newcomer_takes_the_place_of_whoever_holds_most(kind: type[Policy]) -> None:
    policy = policy_of(kind(), [made(i, "a") for i in range(8)])
    running = admit(policy, 6)
    assert not policy.pressing
    newcomer = made(100, "b")
    policy.add(newcomer)
    assert policy.pressing
    victim = policy.gives_way(newcomer, running)
    assert victim is running[-1]
    running.remove(victim)
    policy.end(victim)
    policy.add(victim)
    assert [c.tenant for c in admit(policy, 1, full=True)] == ["b"]
    running.append(newcomer)
    assert policy.gives_way(victim, running) is None, "and does not lose it again"


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 10**6))
def test_places_that_give_way_come_to_rest(held: list[int], seed: int) -> None:
    random, policy = Random(seed), FirstComeFirstServed()
    running = [
        made(i, f"t{t}") for i, t in enumerate(t for t, n in enumerate(held) for _ in range(n))
    ]
    for candidate in running:
        policy.begin(candidate)
    waiting = [made(1000 + i, f"t{i % len(held)}") for i in range(5 * len(held))]
    for candidate in waiting:
        policy.add(candidate)
    seats, exchanges, came = len(running), 0, set()
    while True:
        random.shuffle(waiting)
        pairs = ((c, policy.gives_way(c, running)) for c in waiting)
        candidate, victim = next((pair for pair in pairs if pair[1] is not None), (None, None))
        if candidate is None or victim is None:
            break
        assert victim not in came, "a place that was given is not taken back"
        running.remove(victim)
        policy.end(victim)
        policy.begin(candidate)
        policy.remove(candidate)
        policy.add(victim)
        waiting = [c for c in waiting if c is not candidate] + [victim]
        running.append(candidate)
        came.add(candidate)
        exchanges += 1
        assert exchanges <= seats
    if policy.pressing:
        pytest.fail("somebody is still to give way")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=2, max_size=12))
def test_when_pages_run_out_the_first_that_arrived_stays(of: list[tuple[str, int]]) -> None:
    policy = FirstComeFirstServed()
    running = [made(i, tenant, seats=seats) for i, (tenant, seats) in enumerate(of)]
    for candidate in running:
        policy.begin(candidate)
    while len(running) > 1:
        victim = policy.victim(running)
        assert victim.order != (0, 0)
        assert isinstance(victim, Prompt)
        running.remove(victim)
        policy.end(victim)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_lower_priority_goes_first_among_a_tenants_own(kind: type[Policy]) -> None:
    policy = policy_of(kind(), [made(i, "a", priority=p) for i, p in enumerate([3, 0, -2, 0])])
    assert [number for _, number in begun(policy, 4)] == [2, 1, 3, 0]


@pytest.mark.parametrize("kind", POLICIES)
def test_a_priority_gives_nothing_over_other_tenants(kind: type[Policy]) -> None:
    waiting = [made(i, "greedy", priority=-(10**9)) for i in range(50)]
    policy = policy_of(kind(), [*waiting, made(50, "modest")])
    first = begun(policy, 2)
    assert ("modest", 50) in first


@pytest.mark.parametrize("kind", POLICIES)
def test_those_of_a_tenant_that_all_wait_hold_up_no_other(kind: type[Policy]) -> None:
    waiting = [made(i, f"t{i % 3}") for i in range(600)] + [made(600, "last")]
    policy = policy_of(kind(), waiting)
    asked = []

    def waits(candidate: Prompt) -> int:
        asked.append(candidate)
        return int(candidate.tenant != "last")

    found = []
    for _ in range(3):
        found += [c.tenant for c in admit(policy, 2, waits)]  # type: ignore[arg-type]
    assert found == ["last"]
    assert len(asked) <= 3 * 128 + 1


def test_users_that_share_a_prefix_are_kept_together() -> None:
    documents = [np.random.default_rng(d).integers(0, 5000, 40) for d in range(3)]
    waiting = [
        Prompt((i, 0), np.array([*documents[i % 3], i], np.int32), tenant=f"user{i}")
        for i in range(12)
    ]
    policy = policy_of(LongestPrefixMatch(), waiting)
    found = []
    for _ in range(6):
        for candidate in admit(policy, 2):
            found.append(candidate.order[0] % 3)
            policy.end(candidate)
    assert found == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("kind", POLICIES)
def test_who_has_left_is_forgotten(kind: type[Policy]) -> None:
    policy = kind()
    for number in range(300):
        policy.add(made(number, f"t{number}", remaining_prefill=5000))
    while taken := admit(policy, 7):
        for candidate in taken:
            assert isinstance(candidate, Prompt)
            run_to_the_end(policy, candidate)
    assert not policy._tenants._tenants  # type: ignore[attr-defined]
