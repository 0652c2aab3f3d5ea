"""Draft trees: merging what is proposed, choosing what is worth it, and the tempo of steps."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ockham.core.seams import Draft
from ockham.engine.messages import Delta, merged
from ockham.engine.speculation.acceptance import Acceptance
from ockham.engine.speculation.account import Account
from ockham.engine.speculation.tempo import Tempo
from ockham.engine.speculation.tree import ROOT, Tree, choose

SHARES = [0.9, 0.5, 0.1]


def tree_of(*drafts: Draft, worth: float = 0.0) -> Tree:
    tree = Tree()
    for drafter, draft in enumerate(drafts):
        tree.add(draft, drafter, SHARES, worth)
    return tree


def test_what_two_drafters_propose_alike_is_one_token() -> None:
    one = Draft([5, 6, 7], [-1, 0, 1], [1, 1, 0])
    other = Draft([5, 8, 6], [-1, 0, 0], [0, 2, 0])
    tree = tree_of(one, other)
    assert tree.tokens == [5, 6, 7, 8]
    assert tree.parents == [ROOT, 0, 1, 0]
    assert tree.depths == [1, 2, 3, 2]
    assert tree.sources == [[(0, 1), (1, 0)], [(0, 1), (1, 0)], [(0, 0)], [(1, 2)]]
    assert tree.chances == pytest.approx([0.9, 0.81, 0.225, 0.09])
    assert tree.leading == 3
    assert tree.path(3) == [0, 3]


def test_the_likeliest_branch_leads_and_goes_on_alone_whoever_proposed_it() -> None:
    tree = tree_of(Draft([5, 6], [-1, 0], [1, 1]), Draft([8, 9, 3], [-1, 0, 0], [0, 1, 0]))
    joined = tree.joined(2)
    assert joined.tokens == [8, 3, 5]
    assert joined.parents == [ROOT, 0, ROOT]
    assert joined.sources == [[(1, 0)], [(1, 0)], [(0, 1)]]
    assert joined.leading == 2
    assert tree.joined(1).tokens == [8, 3]
    assert tree.joined(3) is tree
    assert Tree().joined(1) == Tree()


def test_what_hangs_below_a_token_that_is_not_worth_it_is_left_out() -> None:
    tree = tree_of(Draft([1, 2, 3], [-1, 0, -1], [2, 0, 1]), worth=0.2)
    assert tree.tokens == [3]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    count = draw(st.integers(0, 5))
    parents = [draw(st.integers(-1, i - 1)) for i in range(count)]
    kinds = [draw(st.integers(0, 2)) for _ in range(count)]
    return tree_of(Draft(list(range(count)), parents, kinds))


@given(st.lists(trees(), min_size=1, max_size=2), st.floats(0.0, 0.5), st.integers(0, 8))
def test_no_other_choice_has_more_goodput(forest: list[Tree], slope: float, room: int) -> None:
    """With rows that cost alike, taking the likeliest is best: compare with all choices."""
    rows = len(forest)
    cost = [1.0 + slope * more for more in range(room + 1)]
    chosen = choose(forest, rows, room, cost)

    def goodput(chances: list[float]) -> float:
        return (rows + sum(chances)) / cost[len(chances)]

    for before, after in zip(forest, chosen, strict=True):
        for number, token in enumerate(after.tokens):
            assert token in before.tokens
            assert after.parents[number] < number
    every = [(w, n) for w, tree in enumerate(forest) for n in range(len(tree))]
    best = 0.0
    for count in range(min(room, len(every)) + 1):
        for some in combinations(every, count):
            whole = all(
                forest[w].parents[n] == ROOT or (w, forest[w].parents[n]) in some for w, n in some
            )
            if whole:
                best = max(best, goodput([forest[w].chances[n] for w, n in some]))
    assert goodput([c for tree in chosen for c in tree.chances]) == pytest.approx(best)


def test_what_is_certain_is_taken_at_any_price() -> None:
    forced, other = Tree(), Tree()
    forced.add(Draft([5, 6, 7], [-1, 0, 1], [0, 0, 0]), 0, [1.0], 1.0)
    forced.certain = 3
    forced.add(Draft([5, 6, 7, 8], [-1, 0, 1, 2], [0, 0, 0, 2]), 1, [0.9, 0.5, 0.1], 0.0)
    other.add(Draft([5, 9], [-1, 0], [0, 1]), 1, [0.9, 0.5], 0.0)
    dear = [1.0 + 5.0 * more for more in range(7)]
    certain, nothing = choose([forced, other], 2, 6, dear)
    assert (certain.tokens, certain.certain) == ([5, 6, 7], 3)
    assert not nothing
    # Where rows are cheap, the others are weighed beside it.
    cheap = [1.0, 1.01, 1.02, 1.03, 1.1, 1.15, 2.0]
    certain, likely = choose([forced, other], 2, 6, cheap)
    assert (certain.tokens, likely.tokens) == ([5, 6, 7], [5, 9])


def test_acceptance_follows_what_happens_and_forgets() -> None:
    acceptance = Acceptance((0.5,))
    for _ in range(100):
        acceptance.learn(0, accepted=False)
    assert acceptance.shares[0] < 0.05
    for _ in range(500):
        acceptance.learn(0, accepted=True)
    assert acceptance.shares[0] > 0.8


def test_a_kind_that_fails_is_tried_ever_more_rarely() -> None:
    acceptance = Acceptance((0.5,))
    step, tries = 0, []
    while step < 20_000:
        step += 1
        if acceptance.due(step):
            tries.append(step)
            acceptance.tried(0, step, accepted=False)
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert len(tries) < 12
    acceptance.tried(0, step, accepted=True)
    assert acceptance.due(step + 64) == [0]


@pytest.mark.parametrize("slope", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("switch", [0.0, 0.4])
def test_the_tempo_learns_what_a_drafted_row_costs(slope: float, switch: float) -> None:
    """`switch` is what a step with drafts costs more, however few they are."""
    tempo = Tempo()
    assert not tempo.known
    for turn in range(400):
        if turn % 3:
            tempo.observe_plain(1, 0.030)
        else:
            rows = (5, 8, 12)[turn // 3 % 3]
            tempo.observe_drafted(rows, 0.030 * (1.0 + switch + slope * (rows - 1)))
    costs = tempo.costs(1, 40)
    assert len(costs) == 41
    assert costs == sorted(costs)
    assert costs[7] / costs[0] == pytest.approx(1.0 + switch + 7 * slope, rel=0.05)
    assert tempo.worth(1) == pytest.approx(slope, rel=0.3, abs=0.1 if switch else 0.01)


def test_nothing_is_held_against_a_plain_step_that_was_never_seen_or_long_ago() -> None:
    tempo = Tempo()
    assert tempo.stale(1)
    for _ in range(3):
        assert tempo.stale(1)
        tempo.observe_plain(1, 0.010)
    assert not tempo.stale(1)
    assert tempo.stale(8)
    tempo.observe_plain(8, 0.015)
    assert not tempo.stale(1)
    for _ in range(100):
        tempo.observe_drafted(16, 0.020)
    assert tempo.stale(8)
    # The machine has become slower meanwhile: that is no matter of the number of sequences.
    ratio = tempo.plain(8) / tempo.plain(1)
    for _ in range(20):
        tempo.observe_plain(8, 0.030)
    assert not tempo.stale(8)
    assert tempo.plain(8) == pytest.approx(0.030, rel=0.05)
    assert tempo.plain(8) / tempo.plain(1) == pytest.approx(ratio, rel=0.05)


def test_the_tempo_follows_a_machine_that_slows_down_and_ignores_a_hiccup() -> None:
    tempo = Tempo()
    for _ in range(50):
        tempo.observe_plain(1, 0.010)
        tempo.observe_drafted(8, 0.014)
    before = tempo.costs(1, 7)[7]
    tempo.observe_drafted(8, 3.0)
    assert tempo.costs(1, 7)[7] < 1.2 * before
    for _ in range(50):
        tempo.observe_plain(1, 0.020)
        tempo.observe_plain(1, 0.020)
        tempo.observe_drafted(8, 0.028)
    assert tempo.costs(1, 7)[7] == pytest.approx(1.4, rel=0.05)
    assert tempo.plain(1) == pytest.approx(0.020, rel=0.05)


def test_the_tempo_believes_plain_steps_that_follow_one_another_alone() -> None:
    """What follows a draft, or ends a sequence, takes longer than plain steps do."""
    tempo = Tempo()
    for _ in range(10):
        tempo.observe_plain(1, 0.010)
    for _ in range(30):
        tempo.observe_drafted(8, 0.014)
        tempo.observe_plain(1, 0.017)
        tempo.observe_drafted(8, 0.014)
        tempo.observe_plain(1, 0.017)
        tempo.observe_plain(1, 0.025, ended=True)
        tempo.interrupt()
        tempo.observe_plain(1, 0.025)
    assert tempo.plain(1) == pytest.approx(0.010)
    assert tempo.stale(1)
    tempo.observe_plain(1, 0.012)
    assert not tempo.stale(1)
    assert 0.010 < tempo.plain(1) <= 0.012


def test_the_tempo_tells_more_sequences_from_a_slower_machine() -> None:
    tempo = Tempo()
    for turn in range(300):
        batch = (1, 4)[turn // 10 % 2]
        tempo.observe_plain(batch, 0.010 * (1.0 + 0.2 * (batch - 1)))
    assert tempo.plain(4) / tempo.plain(1) == pytest.approx(1.6, rel=0.05)


def test_an_account_stops_what_loses_and_lets_it_try_again() -> None:
    account = Account()
    plain_s, lost_s, steps, tries = 0.010, 0.0, 0, 0
    while steps < 20_000:
        steps += 1
        gain_s = -0.5 * plain_s if account.open else 0.0  # every draft fails
        tries += gain_s < 0
        lost_s -= gain_s
        if gain_s:
            account.book(plain_s, gain_s)
        else:
            account.rest()
    assert 100 < tries < 1000
    assert lost_s < 0.015 * steps * plain_s
    for _ in range(1000):
        account.book(plain_s, 2 * plain_s)
    assert account.open


def test_the_best_of_a_tree_is_a_tree() -> None:
    tree = tree_of(Draft([1, 2, 3, 4], [-1, 0, -1, 2], [1, 0, 0, 0]))
    assert tree.best(4) is tree
    best = tree.best(2)
    assert (best.tokens, best.parents) == ([3, 4], [ROOT, 0])


def test_what_finishes_a_request_stays_its_last_delta() -> None:
    """One choice gets more tokens of its draft than the other, and is the last to end."""
    deltas = [Delta("a", 0, [1]), Delta("a", 1, [2], finish_reason="stop"), Delta("b", 0, [3])]
    last = Delta("a", 0, [4], finish_reason="length", finished=True)
    together = merged([*deltas, last])
    assert [(d.request_id, d.index, d.token_ids) for d in together] == [
        ("a", 1, [2]),
        ("b", 0, [3]),
        ("a", 0, [1, 4]),
    ]
    assert [d.finished for d in together] == [False, False, True]
