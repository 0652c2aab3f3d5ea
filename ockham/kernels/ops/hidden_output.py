"""The end of a program that gives hidden states instead of logits."""

from __future__ import annotations

from dataclasses import dataclass

from ockham.kernels.ops.operation import Norm, Operation


@dataclass(frozen=True, slots=True, eq=False)
class HiddenOutput(Operation):
    """hidden[layer] = norm(x) (x itself where norm is None) for the rows that
    `Step.wants_hidden[layer]` names, and for no other.

    `layer` is the number of layers: one more than that of the last layer, whose own hidden states
    are those before the norm. Leaves x as it is."""

    layer: int
    norm: Norm | None = None
