"""The projection that ends an attention branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ockham.core.arrays import Floats
from ockham.core.cost import ATTENTION, Sublayer
from ockham.core.seams import Linear
from ockham.kernels.ops.operation import Norm, Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOutput(Operation):
    """x += residual_scale * post_norm(out(a) + bias); then x = stream_norm(x), where there is
    one. Where there is a `shortcut`, x = shortcut(x) comes first. Where there is a `gate`, a is
    multiplied with sigmoid(gate(gate_norm(x))) before, element by element. Where there are
    `values`, the last elements of each head of a are multiplied with the head's own matrix first.
    Where there is an `inner_norm`, inner_norm(a) takes the place of a then."""

    adaptable: ClassVar[tuple[str, ...]] = ("out",)

    layer: int
    out: Linear  # (D, H * E), or (D, H * outputs of one of `values`)
    bias: Floats | None = None
    post_norm: Norm | None = None
    residual_scale: float = 1.0
    stream_norm: Norm | None = None
    shortcut: Linear | None = None  # (D, D)
    gate: Linear | None = None  # (H * E, D)
    gate_norm: Norm | None = None
    inner_norm: Norm | None = None  # (H * E,)
    values: Sequence[Linear] = ()  # of each head

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, ATTENTION

    def matrices(self) -> dict[str, Linear]:
        matrices = {"out": self.out, "attention_shortcut": self.shortcut, "gate": self.gate}
        of_heads = {f"values.{head}": matrix for head, matrix in enumerate(self.values)}
        return {name: matrix for name, matrix in matrices.items() if matrix is not None} | of_heads

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """The stream in its next basis, the gates, and what the heads' own matrices give."""
        turned = 0 if self.shortcut is None else sizes.rows * self.shortcut.out_features
        gates = 0 if self.gate is None else sizes.rows * self.gate.out_features
        values = sizes.rows * sum(2 * each.out_features for each in self.values)
        return {"turned": turned, "gates": gates + values}
