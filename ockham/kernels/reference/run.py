"""A step under way on the reference backend, and the table of the operations' twins."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.seams import Linear
from ockham.core.step import Step
from ockham.kernels.ops import Norm, Operation, Rope, role_of
from ockham.kernels.reference.adapters import ReferenceAdapter
from ockham.kernels.reference.formulas import normalise, rotation
from ockham.kernels.reference.planes import ReferencePlanes
from ockham.kernels.reference.spared import Spared
from ockham.kernels.reference.views import View, views

Rows = TypeVar("Rows", Floats, Ints, Longs)
_NOTHING: Floats = np.empty((0, 0), np.float32)


@dataclass(slots=True)
class ReferenceRun:
    """One step under way. `x` (R, hidden) may be read and replaced at a breakpoint."""

    step: Step
    planes: ReferencePlanes
    x: Floats = field(default_factory=lambda: _NOTHING)
    q: Floats = field(default_factory=lambda: _NOTHING)  # (R, heads, head_dim)
    a: Floats = field(default_factory=lambda: _NOTHING)  # (R, heads * head_dim)
    h: Floats = field(default_factory=lambda: _NOTHING)  # (R, hidden), the experts' input
    experts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    expert_weights: Floats = field(default_factory=lambda: _NOTHING)
    held: Floats = field(default_factory=lambda: _NOTHING)  # x, as `HoldStream` kept it
    layer_inputs: Floats = field(default_factory=lambda: _NOTHING)  # (R, layers * P)
    logits: Floats = field(default_factory=lambda: _NOTHING)
    argmax: list[int] = field(default_factory=list)
    largest: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    candidates: Ints = field(default_factory=lambda: np.empty((0, 0), np.int32))
    hidden: dict[int, Floats] = field(default_factory=dict)
    scores: dict[int, list[Floats]] = field(default_factory=dict)
    score_sums: dict[int, list[Floats]] = field(default_factory=dict)
    recall: dict[int, Floats] = field(default_factory=dict)
    score_totals: dict[int, list[Doubles]] = field(default_factory=dict)
    left_out: dict[int, Longs] = field(default_factory=dict)
    queries: dict[int, Floats] = field(default_factory=dict)
    views: dict[tuple[int, int | None, bool, int | None], list[View]] = field(default_factory=dict)
    rotations: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    rope: Rope | None = None
    """By which `q` was rotated."""
    active: Ints | None = None
    """The rows that the operation under way computes; None for all. `q` and `a` have a place for
    every row of the step; what lives within a feed-forward has the active rows only."""
    leading: int | None = None
    """How many neurons the feed-forward under way computes, the first ones; None for all."""
    spared: Spared = field(default_factory=Spared)
    going: Ints | None = None
    """The rows that took the pass under way, up to the operation `going_until`."""
    going_until: int = 0
    deep: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """See `StepOutput.deep`."""

    def of_active(self, rows: Rows) -> Rows:
        """The active ones of the step's rows (R, ...)."""
        return rows if self.active is None else rows[self.active]

    def of_step(self, active: Floats) -> Floats:
        """The active rows in their places among all rows of the step; the others are zero."""
        if self.active is None:
            return active
        rows = np.zeros((self.step.rows, *active.shape[1:]), np.float32)
        rows[self.active] = active
        return rows

    def views_of(self, group: int, window: int | None, causal: bool) -> list[View]:
        """What the active rows of each sequence see in a group of layers, worked out once for the
        layers that share it."""
        key = group, window, causal, None if self.active is None else id(self.active)
        if key not in self.views:
            self.views[key] = views(self.step, group, window, self.active, causal)
        return self.views[key]

    def rotation_of(self, rope: Rope) -> tuple[Floats, Floats]:
        """Cosines and sines of the step's rows, shared by the layers that share a rope."""
        if id(rope) not in self.rotations:
            self.rotations[id(rope)] = rotation(rope, self.step.positions)
        return self.rotations[id(rope)]

    def product(self, op: Operation, name: str, x: Floats) -> Floats:
        """x, the active rows, times the matrix that `op.matrices()` calls `name`, and what adapters
        add for their rows."""
        y = op.matrices()[name].matmul(x)
        adapters = self.step.adapters
        if adapters is None:
            return y
        owner = self.of_active(self.step.sequence)
        for adapter in {each for each in adapters if each is not None}:
            assert isinstance(adapter, ReferenceAdapter)
            own = np.isin(owner, [s for s, each in enumerate(adapters) if each is adapter])
            for each in adapter.of.get(role_of(op, name), ()):
                last = each.first + len(each.b)
                y[own, each.first : last] += (x[own] @ each.a.T * np.float32(each.scale)) @ each.b.T
        return y

    def add(
        self,
        branch: Floats,
        post_norm: Norm | None,
        residual_scale: float,
        stream_norm: Norm | None = None,
        shortcut: Linear | None = None,
    ) -> None:
        """x = shortcut(x), where there is one, x += residual_scale * post_norm(branch), and then
        x = stream_norm(x), of the active rows."""
        if shortcut is not None and self.active is not None:
            self.x = self.x.copy()
            self.x[self.active] = shortcut.matmul(self.x[self.active])
        elif shortcut is not None:
            self.x = shortcut.matmul(self.x)
        branch = normalise(branch, post_norm)
        branch = branch if residual_scale == 1.0 else branch * np.float32(residual_scale)
        if self.active is None:
            self.x = normalise(self.x + branch, stream_norm)
        else:
            self.x = self.x.copy()
            self.x[self.active] = normalise(self.x[self.active] + branch, stream_norm)

    def keep_hidden(self, layer: int) -> None:
        """Copy the rows whose hidden states are wanted after `layer`."""
        rows = self.step.wants_hidden.get(layer)
        if rows is not None:
            self.hidden[layer] = self.x[rows]


Twin = Callable[[ReferenceRun, Any], None]
Op = TypeVar("Op", bound=Operation)
_TWINS: dict[type[Operation], Twin] = {}


def twin(
    kind: type[Op],
) -> Callable[[Callable[[ReferenceRun, Op], None]], Callable[[ReferenceRun, Op], None]]:
    """Register a function as what the operations of a class mean in NumPy."""

    def register(
        function: Callable[[ReferenceRun, Op], None],
    ) -> Callable[[ReferenceRun, Op], None]:
        _TWINS[kind] = function
        return function

    return register


def twin_of(op: Operation) -> Twin:
    """The function of an operation's class, from the modules of this package or wherever it was
    registered. Raises TypeError if it has none."""
    if type(op) not in _TWINS:
        package = importlib.import_module("ockham.kernels.reference")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found = _TWINS.get(type(op))
    if found is None:
        raise TypeError(f"the reference backend has no twin of the operation {type(op).__name__}.")
    return found
