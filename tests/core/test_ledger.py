"""Integer shares add up; ledgers add field by field."""

from hypothesis import given
from hypothesis import strategies as st

from ockham.core.cost import GroupCost, ModelCost, keys_seen
from ockham.core.ledger import Ledger, divide


@given(st.integers(0, 10**15), st.lists(st.integers(1, 600), min_size=1, max_size=80))
def test_shares_sum_to_the_total_and_are_off_by_less_than_one(total, weights):
    parts = divide(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) <= 1 + total * 2**-50


@given(st.integers(1, 40), st.integers(0, 40), st.one_of(st.none(), st.integers(1, 20)))
def test_keys_seen_counts_each_rows_window(first, rows, window):
    expected = sum(k if window is None else min(k, window) for k in range(first, first + rows))
    assert keys_seen(first, rows, window) == expected


def test_adding_ledgers_adds_every_entry():
    one, two = Ledger(rows=3, queue_s=0.5), Ledger(rows=4, flops=7)
    one.save("fork", tokens=2)
    two.save("fork", tokens=3, flops=5)
    two.waste("preemption", nbytes=1)
    one.add(two)
    assert (one.rows, one.flops, one.queue_s) == (7, 7, 0.5)
    assert (one.saved["fork"].tokens, one.saved["fork"].flops) == (5, 5)
    assert one.wasted["preemption"].bytes == 1
    one.saved["fork"].tokens = 99
    assert two.saved["fork"].tokens == 3


def test_a_new_ledger_shares_nothing_with_another():
    first = Ledger()
    first.save("fork", tokens=1)
    assert Ledger().saved == {}


def test_a_row_costs_two_flops_a_weight_and_four_a_key_element():
    cost = ModelCost(
        linear_flops=100,
        head_flops=50,
        dense_weight_bytes=1000,
        head_weight_bytes=200,
        embedding_row_bytes=10,
        groups=(GroupCost(layers=2, heads=3, head_dim=4, cell_bytes=16, window=None),),
        moe_layers=2,
        experts=8,
        experts_per_row=2,
        expert_bytes=5,
    )
    assert cost.row_flops(first=1, rows=2, logits=1) == 2 * 100 + 50 + 4 * 2 * 3 * 4 * (1 + 2)
    assert cost.weight_bytes(rows=3, logits=0) == 1000 + 30 + 2 * 6 * 5
    assert cost.weight_bytes(rows=100, logits=1) == 1000 + 200 + 1000 + 2 * 8 * 5
    assert cost.state_read_bytes(first=5, rows=3) == 16 * 7
    assert cost.state_written_bytes(3) == 48
