"""A step under way on the reference backend, and the table of the operations' twins."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints
from ockham.core.step import Step
from ockham.kernels.ops import Norm, Operation, Rope
from ockham.kernels.reference.formulas import normalise, rotation
from ockham.kernels.reference.planes import ReferencePlanes
from ockham.kernels.reference.views import View, views

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
    logits: Floats = field(default_factory=lambda: _NOTHING)
    argmax: list[int] = field(default_factory=list)
    largest: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    candidates: Ints = field(default_factory=lambda: np.empty((0, 0), np.int32))
    hidden: dict[int, Floats] = field(default_factory=dict)
    scores: dict[int, list[Floats]] = field(default_factory=dict)
    score_sums: dict[int, list[Floats]] = field(default_factory=dict)
    views: dict[tuple[int, int | None], list[View]] = field(default_factory=dict)
    rotations: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    def views_of(self, group: int, window: int | None) -> list[View]:
        """What each sequence sees in a group of layers, worked out for the first of them."""
        if (group, window) not in self.views:
            self.views[group, window] = views(self.step, group, window)
        return self.views[group, window]

    def rotation_of(self, rope: Rope) -> tuple[Floats, Floats]:
        """Cosines and sines of the step's rows, shared by the layers that share a rope."""
        if id(rope) not in self.rotations:
            self.rotations[id(rope)] = rotation(rope, self.step.positions)
        return self.rotations[id(rope)]

    def add(self, branch: Floats, post_norm: Norm | None, residual_scale: float) -> None:
        """x += residual_scale * post_norm(branch)."""
        branch = normalise(branch, post_norm)
        self.x = self.x + (branch if residual_scale == 1.0 else branch * np.float32(residual_scale))

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
