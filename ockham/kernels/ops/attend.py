"""Attention over the keys and values that each row sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ockham.core.arrays import Floats
from ockham.core.cost import ATTENTION, AttentionCost, OperationCost, Sublayer
from ockham.kernels.ops.operation import Operation, StepSizes


@dataclass(frozen=True, slots=True, eq=False)
class Attend(Operation):
    """Attention of q over the keys and values that each row sees, as stored, in order.

    s = q . k * scale; s = softcap * tanh(s / softcap) where set; of the keys that the row sees only
    the last `window` count where set (the row's own included), and of those only the keys in blocks
    that the step's `visits` name for the row, the layer and the key-value head; a = softmax(s) . v.
    Query head h reads key-value head h * G // H. Values of a latent plane are its keys. Leaves a
    (R, H * E). With `sinks`, head h has one more score in its softmax, sinks[h], with a value of
    zero: every row sees it, and it is summed after the keys. Where the layer `reads` another's keys
    and values, they are that layer's, in the same group, and so are the step's `visits` and
    choices. Where the layer's rope has a
    `DualChunk`, q is turned and scaled as that says, by the chunk of each key; no row chooses keys
    by itself then.

    Where not `causal`, a row sees every cell of its sequence up to that of the sequence's last row
    in the step, and with a `window` only those less than `window` cells away from its own. The
    state is complete only if all rows of a sequence are in one step."""

    layer: int
    group: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    sinks: Floats | None = None  # (H,)
    reads: int | None = None

    @property
    def state_layer(self) -> int:
        """The layer whose keys and values are read."""
        return self.layer if self.reads is None else self.reads

    @property
    def sublayer(self) -> Sublayer:
        return self.layer, ATTENTION

    def cost(self) -> OperationCost:
        return OperationCost(
            self.sublayer,
            attention=AttentionCost(
                self.group,
                self.heads,
                self.head_dim,
                self.kv_heads,
                self.causal,
                self.reads is not None,
            ),
        )

    def workspace(self, sizes: StepSizes) -> Mapping[str, int]:
        """Keys and values of the longest context (as gathered, and in the form that the products
        read), and the scores of one row with its probabilities."""
        cells = sizes.max_model_len + sizes.rows
        return {
            "cells": 4 * cells * self.kv_heads * self.head_dim,
            "scores": 2 * self.heads * sizes.max_model_len,
        }
