"""Gates: which rows of a step stay active, and what the ledger books of those that do not."""

from __future__ import annotations

from ockham.core.cost import ATTENTION, FEED_FORWARD, RUNS_ALL
from ockham.engine.gates import active_rows
from ockham.model.program.costs import cost_of
from tests.helpers.programs import Shape, layouts_of, random_program

SUBLAYERS = {
    (0, ATTENTION): range(1, 4),
    (0, FEED_FORWARD): range(4, 5),
    (1, ATTENTION): range(5, 8),
    (1, FEED_FORWARD): range(8, 10),
}
LAYER_1 = frozenset({(1, ATTENTION), (1, FEED_FORWARD)})


def test_rows_of_sequences_that_skip_are_not_active() -> None:
    (found,) = active_rows([RUNS_ALL, LAYER_1, RUNS_ALL], [2, 3, 1], SUBLAYERS)
    assert (found.start, found.stop) == (5, 10)
    assert found.rows.tolist() == [0, 1, 5]


def test_sublayers_with_other_rows_are_ranges_of_their_own() -> None:
    other = frozenset({(1, FEED_FORWARD), (0, ATTENTION)})
    found = active_rows([LAYER_1, other], [2, 1], SUBLAYERS)
    assert [(each.start, each.stop, each.rows.tolist()) for each in found] == [
        (1, 4, [0, 1]),
        (5, 8, [2]),
        (8, 10, []),
    ]


def test_without_a_gate_nothing_is_said() -> None:
    assert active_rows([RUNS_ALL, RUNS_ALL], [1, 1], SUBLAYERS) == ()


def test_the_sublayers_of_a_program_follow_one_another() -> None:
    program = random_program(Shape(experts=3, layers=3), 0)
    found = program.sublayers()
    places = [place for operations in found.values() for place in operations]
    assert places == list(range(1, len(program.ops) - 1))
    assert list(found) == [(i, kind) for i in range(3) for kind in (ATTENTION, FEED_FORWARD)]


def test_a_row_that_skips_costs_what_a_smaller_model_costs() -> None:
    shape, smaller = Shape(layers=3, windows=(5, None)), Shape(layers=2, windows=(5, None))
    whole, two = (cost_of(random_program(each, 0), layouts_of(each)) for each in (shape, smaller))
    gated = whole.without(frozenset({(2, ATTENTION), (2, FEED_FORWARD)}))
    for first, rows, logits in ((1, 1, 1), (3, 20, 2)):
        assert gated.row_flops(first, rows, logits) == two.row_flops(first, rows, logits)
        assert gated.weight_bytes(rows, logits) == two.weight_bytes(rows, logits)
        assert gated.state_read_bytes(first, rows) == two.state_read_bytes(first, rows)
        assert gated.state_written_bytes(rows) == two.state_written_bytes(rows)
    assert whole.without(RUNS_ALL) is whole


def test_every_operation_is_shared_by_those_who_run_it() -> None:
    cost = cost_of(random_program(Shape(experts=4), 0), layouts_of(Shape(experts=4)))
    shares = cost.shared((RUNS_ALL, LAYER_1))
    assert {share.runs for share in shares} == {(True, True), (True, False)}
    assert sum(share.cost.linear_flops for share in shares) == cost.linear_flops
    assert sum(share.cost.weight_bytes(3, 1) for share in shares) == cost.weight_bytes(3, 1)
