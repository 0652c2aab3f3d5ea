"""Originals hold their pages, give them up by value, and are found where they were computed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ockham.cache.originals import Original, Originals
from ockham.cache.reuse.chunk import shared_out
from ockham.cache.reuse.edit import Text, align
from ockham.cache.state import State
from ockham.core.seams import Given
from tests.helpers.states import PAGE, PAGES, make_state


def computed(state: State, cells: int):
    """A view of so many cells."""
    view = state.new_view()
    assert state.reserve(view, cells)
    state.advance(view, cells)
    return view


def tables(view) -> list[np.ndarray]:
    return [table[: view.pages].copy() for table in view.tables]


def keep(state: State, originals: Originals, start: int, stop: int, name: str, cost: float):
    """The original of the cells [start, stop) of a sequence that then ends."""
    view = computed(state, stop)
    recording = originals.record(start, stop)
    recording.reached((start + stop) // 2, tables(view))
    recording.reached(stop, tables(view))
    assert recording.complete
    original = originals.keep(recording, name, cost)
    state.release(view)
    state.check_integrity([], originals.held())
    return original


def test_an_original_holds_the_pages_of_its_cells_only() -> None:
    state, gone = make_state(), []
    originals = Originals(state, 1.0, gone.append)
    original = keep(state, originals, 5, 14, "one", 1.0)
    assert state.pages_used == 2 * 3  # cells 4 to 15, in two groups
    assert original.positions.tolist() == list(range(5, 14))
    given = original.given(np.array([100, 101]), np.array([0, 8]))
    assert given.shifts.tolist() == [95, 88]
    assert [slots.tolist() for slots in given.slots] == [
        [int(slots[0]), int(slots[8])] for slots in original.slots
    ]
    originals.forget()
    assert (gone, state.pages_used) == (["one"], 0)


def test_the_one_worth_least_goes_first_and_the_locked_stay() -> None:
    state, gone = make_state(), []
    originals = Originals(state, 1.0, gone.append)
    kept = {
        name: keep(state, originals, 0, cells, name, cost)
        for name, cells, cost in (("dear", 8, 9.0), ("large", 24, 9.0), ("used", 8, 3.0))
    }
    for _ in range(3):
        originals.lock(kept["used"])
        originals.unlock(kept["used"])
    originals.lock(kept["large"])
    state.reclaim([PAGES, PAGES])
    assert gone == ["dear", "used"]
    originals.unlock(kept["large"])
    state.reclaim([PAGES, PAGES])
    assert gone == ["dear", "used", "large"]
    assert state.pages_used == 0


def test_all_together_stay_within_their_share() -> None:
    state, gone = make_state(), []
    originals = Originals(state, 0.25, gone.append)  # 6 of 24 pages
    for number in range(5):
        keep(state, originals, 0, 2 * PAGE, str(number), 1.0)
        assert state.pages_used <= 2 * 6
    assert gone == ["0", "1"]
    assert keep(state, originals, 0, 7 * PAGE, "too large", 1.0) is None
    assert gone == ["0", "1"]


def test_what_was_given_is_recorded_where_it_came_from() -> None:
    state = make_state()
    originals = Originals(state, 1.0, lambda name: None)
    old = keep(state, originals, 0, 8, "old", 1.0)
    view = computed(state, 12)
    recording = originals.record(0, 12)
    cells = np.arange(4, 12, dtype=np.int32)
    given = Given(cells, [slots.copy() for slots in old.slots], np.full(8, 4, np.int32))
    recording.reached(12, tables(view), given)
    new = originals.keep(recording, "new", 1.0)
    state.release(view)
    assert new.positions.tolist() == [0, 1, 2, 3, *range(8)]
    originals.remove(old)
    state.check_integrity([], originals.held())
    originals.forget()
    assert state.pages_used == 0


def test_a_page_that_a_window_let_go_of_makes_a_recording_fail() -> None:
    state = make_state()
    originals = Originals(state, 1.0, lambda name: None)
    view = computed(state, 16)
    state.slide(view)
    recording = originals.record(4, 16)
    recording.reached(16, tables(view))
    assert recording.failed
    assert not recording.complete
    originals.cancel(recording)
    state.release(view)
    assert state.pages_used == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_work_loses_no_page(data: st.DataObject) -> None:
    state, live = make_state(), {}
    originals = Originals(state, 0.6, live.pop)
    locked: list[Original] = []
    for name in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["keep", "keep", "lock", "unlock", "reclaim"]))
        if what == "keep":
            start = data.draw(st.integers(0, 10))
            stop = start + data.draw(st.integers(1, 20))
            if min(state.free_pages()) >= -(-stop // PAGE):
                live[name] = None
                original = keep(state, originals, start, stop, name, data.draw(st.floats(1, 9)))
                live[name] = original
                if original is None:
                    del live[name]
        elif what == "lock" and live:
            locked.append(data.draw(st.sampled_from(list(live.values()))))
            originals.lock(locked[-1])
        elif what == "unlock" and locked:
            originals.unlock(locked.pop())
        elif what == "reclaim":
            state.reclaim([data.draw(st.integers(0, PAGES))] * 2)
        state.check_integrity([], originals.held())
        assert set(originals) == set(live.values())
        assert all(original in set(originals) for original in locked)
        free, evictable = state.free_pages(), originals.evictable()
        if not locked:
            assert [f + e for f, e in zip(free, evictable, strict=True)] == [PAGES, PAGES]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_a_share_is_given_out_whole_and_nobody_gets_more_than_all(sizes, fraction) -> None:
    counts = np.array([size for size, _ in sizes], np.float64)
    weights = np.array([weight for _, weight in sizes])
    found = shared_out(fraction * counts.sum(), counts, weights)
    assert all(0 <= n <= size for n, size in zip(found, counts, strict=True))
    assert fraction * counts.sum() - 1e-3 <= sum(found) <= fraction * counts.sum() + len(sizes)


@given(st.data())
def test_aligned_blocks_are_the_same_and_in_order(data: st.DataObject) -> None:
    old = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=80)), np.int32)
    new = old.tolist()
    for _ in range(data.draw(st.integers(0, 3))):
        at, cut = data.draw(st.integers(0, len(new))), data.draw(st.integers(0, 9))
        new[at : at + cut] = data.draw(st.lists(st.integers(0, 5), max_size=9))
    blocks = align(Text(old, ""), np.array(new, np.int32), 1)
    own = theirs = 0
    for start, there, count in blocks:
        assert start >= own
        assert there >= theirs
        assert new[start : start + count] == old[there : there + count].tolist()
        own, theirs = start + count, there + count
