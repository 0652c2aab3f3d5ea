"""The one builder of steps: where rows stand, and what they see."""

from __future__ import annotations

import numpy as np

from ockham.core.rows import Branch, build_step, chains
from ockham.core.step import Ints, Step, Tables

PAGE_TOKENS = 4


def built(
    starts: list[int],
    counts: list[int],
    branches: list[Branch],
    dropped: list[Ints | None] | None = None,
) -> Step:
    """A step of rows in consecutive places of sequences of eight shuffled pages each, in one group
    of layers or in as many as `dropped` has entries."""
    rows = chains(np.array(starts, np.int32), np.array(counts, np.int32))
    pages = np.random.default_rng(0).permutation(8 * len(starts)).astype(np.int32)
    table = Tables(pages, np.arange(len(starts) + 1, dtype=np.int32) * 8)
    ids = np.arange(len(rows.places), dtype=np.int32)
    gone = dropped or [None]
    tables = (table,) * len(gone)
    return build_step(
        ids, rows.places, rows.owner, tables, PAGE_TOKENS, branches=branches, dropped=gone
    )


def seen(step: Step, row: int, group: int = 0) -> list[int]:
    """The cells of a group that a row sees, in their order."""
    extra: list[int] = []
    rows = step.groups[group]
    if rows.extra is not None and rows.extra_starts is not None:
        extra = rows.extra[rows.extra_starts[row] : rows.extra_starts[row + 1]].tolist()
    return [*range(int(rows.context[row])), *extra]


def test_rows_of_chains_see_all_cells_up_to_their_own() -> None:
    step = built([5, 0, 7], [2, 3, 1], [])
    assert step.sequence.tolist() == [0, 0, 1, 1, 1, 2]
    assert step.groups[0].cells.tolist() == step.positions.tolist() == [5, 6, 0, 1, 2, 7]
    assert [seen(step, row)[-1] for row in range(6)] == step.groups[0].cells.tolist()
    assert [len(seen(step, row)) for row in range(6)] == [6, 7, 1, 2, 3, 8]


def test_a_row_of_a_branch_sees_and_stands_as_if_its_ancestors_were_accepted() -> None:
    """Of sequence 0, cells 0 to 5 are committed; 6 and 8 are siblings, 7 and 9 their children."""
    branches = [Branch(1, 6, []), Branch(2, 6, [6]), Branch(3, 6, []), Branch(4, 6, [8])]
    step = built([5, 3], [5, 2], branches)
    assert [seen(step, row) for row in range(1, 5)] == [
        [*range(6), 6],
        [*range(6), 6, 7],
        [*range(6), 8],
        [*range(6), 8, 9],
    ]
    assert step.positions.tolist() == [5, 6, 7, 6, 7, 3, 4]
    assert step.groups[0].cells.tolist() == [5, 6, 7, 8, 9, 3, 4]
    assert seen(step, 0) == list(range(6))
    assert seen(step, 6) == list(range(5))


def test_slots_are_where_the_page_tables_put_the_cells() -> None:
    step = built([5, 0], [4, 2], [])
    (rows,) = step.groups
    table, slots = rows.tables, rows.slots
    for row, cell in enumerate(step.groups[0].cells.tolist()):
        page = table.pages[table.starts[step.sequence[row]] + cell // PAGE_TOKENS]
        assert slots[row] == page * PAGE_TOKENS + cell % PAGE_TOKENS


def test_positions_cells_and_contexts_are_moved_on_apart() -> None:
    step = built([5, 0], [1, 1], [])
    step.groups[0].cells += 1
    assert step.positions.tolist() == [5, 0]
    assert step.groups[0].context.tolist() == [6, 1]


def test_a_group_that_dropped_cells_has_the_same_rows_further_to_the_front() -> None:
    """Group 1 has dropped four cells of sequence 0 and none of sequence 1."""
    branches = [Branch(1, 6, []), Branch(2, 6, [6]), Branch(3, 6, []), Branch(4, 6, [8])]
    step = built([5, 3], [5, 2], branches, [None, np.array([4, 0], np.int32)])
    whole, less = step.groups
    assert step.positions.tolist() == [5, 6, 7, 6, 7, 3, 4]
    assert whole.cells.tolist() == [5, 6, 7, 8, 9, 3, 4]
    assert less.cells.tolist() == [1, 2, 3, 4, 5, 3, 4]
    for row, gone in enumerate([4] * 5 + [0] * 2):
        assert len(seen(step, row, 1)) == len(seen(step, row)) - gone
        assert seen(step, row, 1) == [cell - gone for cell in seen(step, row) if cell >= gone]
        assert less.slots[row] == int(
            less.tables.slots(step.sequence[row], less.cells[row], PAGE_TOKENS)
        )


def test_groups_that_dropped_nothing_share_their_arrays() -> None:
    first, second = built([5], [2], [], [None, None]).groups
    assert first.cells is second.cells
    assert first.context is second.context
    assert first.slots is not second.slots
