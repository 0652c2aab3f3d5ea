"""Views that keep some of their cells, against a plain model: lists of numbers, one a head."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ockham.cache.state import State, View
from ockham.core.errors import OckhamError
from ockham.kernels.base import Backend
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.backend import ReferenceBackend
from tests.helpers.states import make_state

PAGE, HEADS, LONGEST, PAGES = 4, 2, 40, 24


def pool(backend: Backend, pages: int = PAGES, dtype: str = "float32") -> State:
    """One group of two layers with two heads, and one with a window."""
    groups = (
        GroupLayout((0, 2), StateSpec.attention(HEADS, 2, dtype), pages, PAGE),
        GroupLayout((1,), StateSpec.attention(HEADS, 2, dtype, 6), pages, PAGE),
    )
    return State(backend.allocate(groups), groups, LONGEST, "bits")


def append(state: State, view: View, values: list[float]) -> bool:
    """Compute tokens whose state is these numbers, negated in the second head."""
    first, count = view.tokens, len(values)
    if not state.reserve(view, first + count):
        return False
    for group, layout in enumerate(state.groups):
        data = np.array([[v, -v] for v in values], np.float32)[None, None, :, :, None]
        slots = state.slots(view, group, np.arange(first, first + count))
        whole = np.broadcast_to(data, layout.stored_shape(count))
        state.planes.write(group, slots, np.ascontiguousarray(whole))
    state.advance(view, first + count)
    return True


def contents(state: State, view: View) -> list[list[float]]:
    """What each head holds, in order."""
    held = view.groups[0]
    slots = state.pools[0].slots(held, np.arange(held.length))
    stored = state.planes.read(0, slots)
    assert (stored == stored[:1, :1, :, :, :1]).all(), "layers or keys and values differ"
    return [stored[0, 0, :, 0, 0].tolist(), (-stored[0, 0, :, 1, 0]).tolist()]


class Compactions(RuleBasedStateMachine):
    views = Bundle("views")
    backend: Backend = ReferenceBackend()

    def __init__(self) -> None:
        super().__init__()
        self.state = pool(self.backend)
        self.live: dict[View, list[list[tuple[int, float]]]] = {}
        """Of each view and head, the place and the number of each cell."""
        self.counter = 0

    @rule(target=views)
    def new(self) -> View:
        view = self.state.new_view()
        self.live[view] = [[] for _ in range(HEADS)]
        return view

    @rule(view=views, count=st.integers(1, 9))
    def append(self, view: View, count: int) -> None:
        count = min(count, LONGEST - view.groups[1].length)
        values = [float(self.counter + i) for i in range(count)]
        first = view.tokens
        if not count or not append(self.state, view, values):
            return
        self.counter += count
        for cells in self.live[view]:
            cells.extend((first + i, value) for i, value in enumerate(values))
        self.state.slide(view)

    @rule(target=views, view=views)
    def fork(self, view: View) -> View:
        twin = self.state.fork(view)
        self.live[twin] = [list(cells) for cells in self.live[view]]
        return twin

    @rule(view=views, data=st.data())
    def compact(self, view: View, data: st.DataObject) -> None:
        held = view.groups[0].length
        apart = data.draw(st.booleans())
        count = data.draw(st.integers(0, held))
        chosen = [
            data.draw(st.permutations(range(held)).map(lambda cells: cells[:count]))
            for _ in range(HEADS if apart else 1)
        ]
        if data.draw(st.booleans()):
            chosen = [sorted(each) for each in chosen]
        cells = np.array(chosen, np.int32).reshape(len(chosen), count)
        before = self.state.free_pages()
        if not self.state.compact(view, {0: cells if apart else cells[0]}):
            assert self.state.free_pages() == before
            return
        for head, of_head in enumerate(self.live[view]):
            of_head[:] = [of_head[cell] for cell in chosen[head if apart else 0]]

    @rule(view=views, data=st.data())
    def truncate(self, view: View, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(0, view.tokens))
        gone = view.groups[1].let_go * PAGE > max(0, tokens + 1 - 6)
        if tokens < view.compacted_at or gone:
            with pytest.raises(OckhamError, match=r"dropped|let go"):
                self.state.truncate(view, tokens)
            return
        less = view.tokens - tokens
        self.state.truncate(view, tokens)
        for cells in self.live[view]:
            del cells[len(cells) - less :]

    @rule(view=consumes(views))
    def release(self, view: View) -> None:
        self.state.release(view)
        del self.live[view]

    @invariant()
    def contents_are_right(self) -> None:
        self.state.check_integrity(self.live)
        for view, heads in self.live.items():
            assert contents(self.state, view) == [[value for _, value in cells] for cells in heads]
            places = np.broadcast_to(
                view.groups[0].places(view.tokens), (HEADS, view.groups[0].length)
            )
            assert places.tolist() == [[place for place, _ in cells] for cells in heads]


class NativeCompactions(Compactions):
    backend = CpuBackend(1)


TestCompactions = Compactions.TestCase
TestCompactions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestNativeCompactions = NativeCompactions.TestCase
TestNativeCompactions.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_compaction_frees_pages_and_leaves_other_holders_their_cells() -> None:
    state = pool(ReferenceBackend())
    view = state.new_view()
    append(state, view, [float(i) for i in range(16)])
    twin = state.fork(view)
    free = state.free_pages()[0]
    assert state.compact(view, {0: np.array([0, 12, 13, 14, 15], np.int32)})
    assert contents(state, twin)[0] == list(range(16))
    assert state.free_pages()[0] == free - 2, "what it shares is copied, not written"
    state.release(twin)
    assert state.free_pages()[0] == PAGES - 2
    assert view.groups[0].length == 5
    assert view.groups[1].length == view.tokens == 16


def test_cells_that_stay_in_place_are_not_copied() -> None:
    state = pool(ReferenceBackend())
    view = state.new_view()
    append(state, view, [float(i) for i in range(16)])
    twin = state.fork(view)
    free = state.free_pages()[0]
    assert state.compact(view, {0: np.arange(8, dtype=np.int32)})
    assert state.free_pages()[0] == free
    assert contents(state, view)[0] == list(range(8))
    assert contents(state, twin)[0] == list(range(16))


def test_misuse_is_an_error() -> None:
    state = make_state()
    view = state.new_view()
    assert state.reserve(view, 8)
    state.advance(view, 8)
    with pytest.raises(OckhamError, match="window of 6"):
        state.compact(view, {1: np.arange(2, dtype=np.int32)})
    with pytest.raises(OckhamError, match="8 that are held"):
        state.compact(view, {0: np.array([8], np.int32)})
    with pytest.raises(OckhamError, match=r"\(1, n\)"):
        state.compact(view, {0: np.zeros((3, 2), np.int32)})
    assert state.compact(view, {0: np.array([0, 7], np.int32)})
    with pytest.raises(OckhamError, match="snapshot"):
        state.truncate(view, 7)
    with pytest.raises(OckhamError, match="exported"):
        state.export(view)
