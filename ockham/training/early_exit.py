"""An early exit: the target's first layers and a trained correction draft for the whole (M2R2,
arXiv:2502.02040, paper 128, in kind: the residual stream is moved on to where it will arrive)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.core.errors import ConfigError
from ockham.training.chains import chain_scores
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student, divergence, drawn_part
from ockham.training.target import Target, fast
from ockham.training.writing import write_draft

_DEPTH = 4
"""Layers of the target for one below the exit, unless told otherwise."""


class EarlyExitStudent(Student):
    """A square matrix with a bias after the first `layers` layers; it starts as the plain exit and
    learns the target's distributions."""

    def __init__(self, target: Target, layers: int | None) -> None:
        super().__init__()
        deepest = len(target.layers) - 1
        self.layers = layers or max(1, len(target.layers) // _DEPTH)
        if not 1 <= self.layers <= deepest:
            raise ConfigError(
                f"layers must lie in [1, {deepest}] for a model of {deepest + 1} layers, got "
                f"{self.layers}."
            )
        d = target.hidden_size
        self.rate = min(4e-3, 1.0 / d)  # entries of a matrix are the smaller, the wider it is
        self.target = target
        self.weight = nn.Parameter(torch.zeros(d, d))
        self.bias = nn.Parameter(torch.zeros(d))

    def corrected(self, states: Tensor) -> Tensor:
        """What the target's norm and head are given of states after the first layers."""
        return states + F.silu(F.linear(states, self.weight, self.bias))

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        last = len(self.target.layers)
        with fast():
            with torch.no_grad():
                states = self.target.states(ids, [self.layers, last])
            part = drawn_part(ids, self.target.vocab_size, rng)
            with torch.no_grad():
                teacher = self.target.logits(states[last][:, part])
            learned = self.target.logits(self.corrected(states[self.layers][:, part]))
        return divergence(teacher, learned)

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        def logits(ids: Tensor) -> Tensor:
            states = self.target.states(ids, [self.layers])[self.layers]
            return self.target.logits(self.corrected(states))

        return chain_scores(texts, logits)

    def write(self, directory: Path, trained: Scores) -> None:
        tensors = {"weight": self.weight, "bias": self.bias}
        write_draft(directory, self.target, "early_exit", tensors, trained, layers=self.layers)
