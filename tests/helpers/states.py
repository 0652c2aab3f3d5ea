"""A small pool of pages in two groups of layers, one of them with a window."""

from __future__ import annotations

from ockham.cache.state import State
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.planes import ReferencePlanes

PAGE, WINDOW, PAGES, LONGEST = 4, 6, 24, 40


def make_state(numerics_id: str = "bits", pages: int = PAGES, dtype: str = "float32") -> State:
    groups = (
        GroupLayout((0, 2), StateSpec.attention(1, 2, dtype), pages, PAGE),
        GroupLayout((1,), StateSpec.attention(1, 2, dtype, WINDOW), pages, PAGE),
    )
    return State(ReferencePlanes(groups), groups, LONGEST, numerics_id)
