"""The pool of pages against a plain model: each view is a list of numbers."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from ockham.cache.state import State
from ockham.core.errors import ConfigError, OckhamError
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.planes import ReferencePlanes
from tests.helpers.states import LONGEST, PAGE, WINDOW, make_state


def write(state: State, view, start: int, values: list[float]) -> None:
    """Store `values` in the cells from `start`, in every layer, key and value."""
    cells = np.arange(start, start + len(values))
    for group, layout in enumerate(state.groups):
        shape = (len(layout.layers), 2, len(values), 1, 2)
        data = np.broadcast_to(np.array(values, np.float32)[None, None, :, None, None], shape)
        table = view.tables[group][cells // PAGE].astype(np.int64)
        state.planes.write(group, table * PAGE + cells % PAGE, np.ascontiguousarray(data))


def read(state: State, view, group: int, first: int) -> list[float]:
    cells = np.arange(first, view.tokens)
    slots = view.tables[group][cells // PAGE].astype(np.int64) * PAGE + cells % PAGE
    stored = state.planes.read(group, slots)
    assert (stored == stored[:1, :1, :, :, :1]).all(), "layers or keys and values differ"
    return stored[0, 0, :, 0, 0].tolist()


class StateMachine(RuleBasedStateMachine):
    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self.state = make_state()
        self.live: dict[object, list[float]] = {}
        self.counter = 0.0

    @rule(target=views)
    def new(self):
        view = self.state.new_view()
        self.live[view] = []
        return view

    @rule(view=views, count=st.integers(1, 9))
    def append(self, view, count):
        content = self.live[view]
        count = min(count, LONGEST - len(content))
        if count == 0 or not self.state.reserve(view, len(content) + count):
            return
        values = [self.counter + i for i in range(count)]
        self.counter += count
        write(self.state, view, len(content), values)
        content.extend(values)
        self.state.advance(view, len(content))
        self.state.slide(view)

    @rule(target=views, view=views)
    def fork(self, view):
        twin = self.state.fork(view)
        self.live[twin] = list(self.live[view])
        return twin

    @rule(view=views, data=st.data())
    def truncate(self, view, data):
        cells = data.draw(st.integers(0, len(self.live[view])))
        first_seen = max(0, cells + 1 - WINDOW)
        if view.groups[1].let_go * PAGE > first_seen:
            with pytest.raises(OckhamError, match="let go"):
                self.state.truncate(view, cells)
            return
        self.state.truncate(view, cells)
        del self.live[view][cells:]

    @rule(target=views, view=views)
    def export_and_import(self, view):
        twin = self.state.import_(self.state.export(view))
        if twin is None:
            return multiple()
        self.live[twin] = list(self.live[view])
        return twin

    @rule(view=views, data=st.data())
    def move(self, view, data):
        content = self.live[view]
        low = view.groups[1].let_go * PAGE
        if (
            any(held.shared_tail for held in view.groups)
            or len(content) - low < 2
            or len(content) % PAGE == 0
        ):
            return
        # Only cells of the last page are surely its own.
        own = (len(content) // PAGE) * PAGE
        source = data.draw(st.integers(low, len(content) - 1))
        target = data.draw(st.integers(max(own, low), len(content) - 1))
        self.state.move(view, [source], [target])
        content[target] = content[source]

    @rule(view=consumes(views))
    def release(self, view):
        self.state.release(view)
        del self.live[view]

    @precondition(lambda self: not self.live)
    @rule()
    def everything_comes_back(self):
        assert self.state.pages_used == 0

    @invariant()
    def contents_are_right(self):
        self.state.check_integrity(self.live)
        for view, content in self.live.items():
            assert view.tokens == len(content)
            assert read(self.state, view, 0, 0) == content
            first = max(0, len(content) + 1 - WINDOW)
            assert read(self.state, view, 1, first) == content[first:]


TestStateMachine = StateMachine.TestCase
TestStateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def filled(state: State, cells: int):
    view = state.new_view()
    assert state.reserve(view, cells)
    write(state, view, 0, list(range(cells)))
    state.advance(view, cells)
    return view


def test_a_fork_costs_no_page_until_it_is_written_to():
    state = make_state()
    view = filled(state, 10)
    used = state.pages_used
    twin = state.fork(view)
    assert state.pages_used == used
    assert state.reserve(twin, 11)
    assert state.pages_used == used + 2  # the shared last page, once in each group
    assert state.reserve(view, 11)
    assert state.pages_used == used + 2, "the original is the only holder now and copies nothing"


def test_a_snapshot_survives_what_is_done_to_the_original():
    state = make_state()
    view = filled(state, 6)
    snapshot = state.snapshot(view)
    state.reserve(view, 9)
    write(state, view, 6, [90, 91, 92])
    state.advance(view, 9)
    state.truncate(view, 2)
    assert read(state, state.fork(snapshot), 0, 0) == [0, 1, 2, 3, 4, 5]


def test_a_pool_that_is_too_full_changes_nothing():
    state = make_state(pages=2)
    view = filled(state, 5)
    before = [t[: view.pages].tolist() for t in view.tables]
    assert not state.reserve(view, 9)
    assert [t[: view.pages].tolist() for t in view.tables] == before
    state.check_integrity([view])


def test_a_sliding_window_holds_only_its_pages():
    state = make_state()
    view = state.new_view()
    for cells in range(1, LONGEST + 1):
        assert state.reserve(view, cells)
        state.advance(view, cells)
        state.slide(view)
        held = view.pages - view.groups[1].let_go
        assert held <= state.pages_for(cells, 1, 1)
    assert held * PAGE < WINDOW + 2 * PAGE
    assert view.pages == LONGEST // PAGE


def test_of_rows_that_are_certain_only_what_later_ones_look_back_at_has_pages():
    """Layers without keys and values keep a row of floats of each token, and need the latest."""
    layouts = (
        GroupLayout((0,), StateSpec.attention(1, 2, "float32"), 16, PAGE),
        GroupLayout((1,), StateSpec.rows(2, 3), 16, PAGE),
    )
    state = State(ReferencePlanes(layouts), layouts, 15 * PAGE, "id")
    view = state.new_view()
    for end in (2, 1 + 5 * PAGE, 6 * PAGE, 8 * PAGE + 2):
        assert state.need(view, end, certain=end)[1] <= 2
        assert state.reserve(view, end, certain=end)
        state.check_integrity([view])
        state.advance(view, end)
        state.slide(view)
        held = view.tables[1]
        assert (held >= 0).sum() <= state.pages_for(end, 1, 5 * PAGE)
        assert (held[(end - 2) // PAGE :] >= 0).all()
        state.check_integrity([view])
    with pytest.raises(OckhamError, match="has let go of some"):
        state.truncate(view, 7 * PAGE)
    taken_back = 8 * PAGE + 4
    assert state.reserve(view, 10 * PAGE)  # a draft: what it leaves may be the last
    state.advance(view, 10 * PAGE)
    state.truncate(view, taken_back)
    assert (view.tables[1][(taken_back - 2) // PAGE :] >= 0).all()
    twin = state.fork(view)
    state.check_integrity([view, twin])
    state.release(view)
    state.release(twin)
    assert state.pages_used == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_state_has_the_same_bits_in_another_pool(dtype):
    one, two = make_state(dtype=dtype), make_state(dtype=dtype)
    filled(two, 3)
    rng = np.random.default_rng(0)
    view = one.new_view()
    one.reserve(view, 10)
    for group, layout in enumerate(one.groups):
        cells = np.arange(10)
        slots = view.tables[group][cells // PAGE].astype(np.int64) * PAGE + cells % PAGE
        bits = rng.integers(0, 2**15, (len(layout.layers), 2, 10, 1, 2))
        one.planes.write(group, slots, bits.astype(np.uint16 if dtype == "bfloat16" else "f4"))
    one.advance(view, 10)
    exported = one.export(view)
    arrived = two.import_(exported)
    assert two.export(arrived) == exported


def test_foreign_or_damaged_state_is_refused():
    state = make_state()
    exported = state.export(filled(state, 10))
    with pytest.raises(OckhamError, match="numerics id"):
        make_state(numerics_id="other").import_(exported)
    for field, value in [("length", 11), ("length", 9999), ("first", [3, 0]), ("data", [b"", b""])]:
        damaged = state.export(filled(state, 10)) if state.pages_used < 20 else exported
        setattr(damaged, field, value)
        with pytest.raises(OckhamError, match="exported state"):
            make_state().import_(damaged)


def test_misuse_is_an_error():
    state = make_state()
    view = filled(state, 4)
    with pytest.raises(OckhamError, match="reserved"):
        state.advance(view, 30)
    with pytest.raises(OckhamError, match="truncate"):
        state.truncate(view, 5)
    state.release(view)
    with pytest.raises(OckhamError, match="twice"):
        state.release(view)
    odd = (
        GroupLayout((0,), StateSpec.attention(1, 2, "float32"), 4, 4),
        GroupLayout((1,), StateSpec.attention(1, 2, "float32", 3), 4, 8),
    )
    with pytest.raises(ConfigError, match="pages"):
        State(ReferencePlanes(odd), odd, 8, "bits")
