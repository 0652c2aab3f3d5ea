"""A compiled model: operations in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from ockham.core.cost import Sublayer
from ockham.core.seams import Linear, MatrixPart
from ockham.kernels.ops.dense import Dense
from ockham.kernels.ops.operation import Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled model: operations in order, and the named places where techniques attach.

    `breakpoints[name]` is the index of the operation before which the breakpoint stands:
    `layer.{i}.before`, `layer.{i}.pattern` (before Attend), `layer.{i}.router`,
    `layer.{i}.experts`, `layer.{i}.after` and `head`. A backend runs any range of the operations
    without returning to Python; with nothing attached, a step is one call.
    """

    ops: tuple[Operation, ...]
    breakpoints: dict[str, int] = field(default_factory=dict)
    parts: dict[str, MatrixPart] = field(default_factory=dict)
    """Where the checkpoint's matrices stand to which an adapter may add something, by the names of
    their modules."""
    pooled: tuple[Dense, ...] = ()
    """What is multiplied with a pooled hidden state, in order: no part of a step."""

    def matrices(self) -> dict[str, Linear]:
        """Every matrix by its role, in the order of the program.

        A matrix of a layer has the role `layer.{i}.{field}`: `layer.3.qkv`, `layer.3.out`,
        `layer.3.gate_up`, `layer.3.down`, `layer.3.router`, `layer.3.experts.7.down`. The others
        bear their field's name: `embedding`, `head`. A table that is embedding and head has both.
        This is the one place that makes roles; `role_of` says it for one operation.
        """
        return {
            role_of(op, name): matrix for op in self.ops for name, matrix in op.matrices().items()
        }

    def sublayers(self) -> dict[Sublayer, range]:
        """The operations of each sublayer, which follow one another."""
        found: dict[Sublayer, range] = {}
        for place, op in enumerate(self.ops):
            if op.sublayer is not None:
                start = found[op.sublayer].start if op.sublayer in found else place
                found[op.sublayer] = range(start, place + 1)
        return found


def role_of(op: Operation, name: str) -> str:
    """The role of the matrix that `op.matrices()` calls `name`."""
    return name if op.sublayer is None else f"layer.{op.sublayer[0]}.{name}"


def workspace_bytes(program: Program, sizes: StepSizes) -> int:
    """Bytes that the operations work in: of each memory, as much as its largest user takes."""
    largest: dict[str, int] = {}
    for op in program.ops:
        for name, values in op.workspace(sizes).items():
            largest[name] = max(values, largest.get(name, 0))
    return 4 * sum(largest.values())
