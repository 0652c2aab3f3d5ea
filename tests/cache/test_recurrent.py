"""The pool of recurrent states against a plain model, in which every state is a copy."""

from __future__ import annotations

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

from ockham.cache.state.recurrent import RecurrentPool, RecurrentView
from ockham.core.errors import ConfigError, OckhamError
from ockham.kernels.layout import GroupLayout, PlaneSpec, StateSpec

PLACES = 6
PLANES = (PlaneSpec("memory", 2, 3, "float32"), PlaneSpec("last", 1, 4, "bfloat16"))
Copies = list[np.ndarray]


def make_pool(places: int = PLACES, numerics_id: str = "bits") -> RecurrentPool:
    return RecurrentPool(
        GroupLayout((0, 2), StateSpec("recurrent", PLANES), places, 1), numerics_id
    )


def zeros(pool: RecurrentPool) -> Copies:
    return [np.zeros(plane.shape[1:], plane.dtype) for plane in pool.planes]


def step(state: Copies, token: int) -> Copies:
    """Some function that mixes a token into all of a state."""
    return [
        (plane * 3 + np.arange(plane.size).reshape(plane.shape) + token).astype(plane.dtype)
        for plane in state
    ]


def read(pool: RecurrentPool, view: RecurrentView) -> Copies:
    return zeros(pool) if view.place < 0 else [plane[view.place].copy() for plane in pool.planes]


class Machine(RuleBasedStateMachine):
    views = Bundle("views")
    checkpoints = Bundle("checkpoints")

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool()
        self.live: dict[RecurrentView, tuple[int, Copies]] = {}

    @rule(target=views)
    def open(self) -> RecurrentView:
        view = self.pool.open()
        self.live[view] = (0, zeros(self.pool))
        return view

    @rule(view=views, tokens=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def compute(self, view: RecurrentView, tokens: list[int]) -> None:
        free = self.pool.free
        if not self.pool.reserve(view):
            assert self.pool.free == free == 0
            return
        done, state = self.live[view]
        for token in tokens:
            state = step(state, token)
            own = step([plane[view.place] for plane in self.pool.planes], token)
            for plane, values in zip(self.pool.planes, own, strict=True):
                plane[view.place] = values
        self.live[view] = (done + len(tokens), state)
        self.pool.advance(view, done + len(tokens))

    @rule(target=views, view=views)
    def fork(self, view: RecurrentView) -> RecurrentView:
        twin = self.pool.fork(view)
        self.live[twin] = self.live[view]
        return twin

    @rule(target=checkpoints, view=views)
    def checkpoint(self, view: RecurrentView) -> RecurrentView:
        kept = self.pool.checkpoint(view)
        self.live[kept] = self.live[view]
        return kept

    @rule(view=views, checkpoint=checkpoints)
    def restore(self, view: RecurrentView, checkpoint: RecurrentView) -> None:
        self.pool.restore(view, checkpoint)
        self.live[view] = self.live[checkpoint]

    @rule(target=views, view=views)
    def export_and_import(self, view: RecurrentView) -> object:
        arrived = self.pool.import_(self.pool.export(view))
        if arrived is None:
            assert self.pool.free == 0
            return multiple()
        self.live[arrived] = self.live[view]
        return arrived

    @rule(view=consumes(views))
    def release(self, view: RecurrentView) -> None:
        self.pool.release(view)
        del self.live[view]

    @rule(checkpoint=consumes(checkpoints))
    def forget(self, checkpoint: RecurrentView) -> None:
        self.pool.release(checkpoint)
        del self.live[checkpoint]

    @precondition(lambda self: not self.live)
    @rule()
    def everything_comes_back(self) -> None:
        assert self.pool.free == PLACES

    @invariant()
    def states_are_right(self) -> None:
        self.pool.check_integrity(self.live)
        for view, (tokens, state) in self.live.items():
            assert view.tokens == tokens
            for own, expected in zip(read(self.pool, view), state, strict=True):
                assert np.array_equal(own, expected)


TestRecurrent = Machine.TestCase
TestRecurrent.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def written(pool: RecurrentPool, tokens: int = 3) -> RecurrentView:
    view = pool.open()
    assert pool.reserve(view)
    pool.advance(view, tokens)
    return view


def test_a_fork_takes_no_room_until_it_is_written_to() -> None:
    pool = make_pool()
    view = written(pool)
    free = pool.free
    twin = pool.fork(view)
    assert pool.free == free
    assert pool.reserve(twin)
    assert pool.free == free - 1
    assert pool.reserve(view)
    assert pool.free == free - 1, "the original is its only holder now"


def test_a_full_pool_says_so_and_changes_nothing() -> None:
    pool = make_pool(places=1)
    view = written(pool)
    twin = pool.fork(view)
    assert not pool.reserve(twin)
    assert pool.import_(pool.export(view)) is None
    pool.check_integrity([view, twin])


def test_bytes_of_a_state_are_those_of_its_planes() -> None:
    pool = make_pool()
    assert pool.layout.cell_bytes == sum(plane[:1].nbytes for plane in pool.planes)


def test_misuse_is_an_error() -> None:
    pool = make_pool()
    view = pool.open()
    with pytest.raises(OckhamError, match="before it was reserved"):
        pool.advance(view, 1)
    view = written(pool)
    with pytest.raises(OckhamError, match="restore a checkpoint"):
        pool.advance(view, 2)
    exported = pool.export(view)
    with pytest.raises(OckhamError, match="numerics id"):
        make_pool(numerics_id="other").import_(exported)
    for field, value in [("data", []), ("data", [b"", b""]), ("tokens", -1)]:
        damaged = pool.export(view)
        setattr(damaged, field, value)
        with pytest.raises(OckhamError, match="wrong size"):
            pool.import_(damaged)
    pool.release(view)
    with pytest.raises(OckhamError, match="twice"):
        pool.release(view)
    with pytest.raises(OckhamError, match="after it was released"):
        pool.fork(view)
    paged = GroupLayout((0,), StateSpec.attention(1, 2, "float32"), 1, 1)
    with pytest.raises(ConfigError, match="paged"):
        RecurrentPool(paged, "bits")
    with pytest.raises(ConfigError, match="stored as 'int3'"):
        PlaneSpec("odd", 1, 1, "int3")
    with pytest.raises(ConfigError, match="size below one"):
        PlaneSpec("odd", 0, 1, "float32")
