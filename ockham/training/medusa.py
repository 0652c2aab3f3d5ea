"""Medusa's heads (arXiv:2401.10774, paper 160), as in Medusa-1: the target is frozen, and its own
output head is shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.training.offsets import offset_scores
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student, divergence, drawn_part
from ockham.training.target import Target, fast
from ockham.training.writing import write_draft

_FALLING = 0.8
"""The weight of a head's loss, beside that of the one before: later tokens matter less."""


class MedusaStudent(Student):
    """K heads, each a square matrix with a bias, that start as the target's own state; they learn
    the target's distributions at the tokens that they foretell."""

    def __init__(self, target: Target, heads: int) -> None:
        super().__init__()
        d = target.hidden_size
        self.rate = min(8e-3, 2.0 / d)  # entries of a matrix are the smaller, the wider it is
        self.target = target
        self.weights = nn.ParameterList(torch.zeros(d, d) for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(d) for _ in range(heads))

    def foretelling(self, states: Tensor) -> list[Tensor]:
        """Of last states (..., d), what each head makes of them."""
        return [
            states + F.silu(F.linear(states, weight, bias))
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        count, vocabulary = len(self.weights), self.target.vocab_size
        with fast():
            with torch.no_grad():
                states = self.target.last_states(ids)
            # Head i at t foretells t + 2 + i; the target's logits for it stand at t + 1 + i.
            part = drawn_part(ids[:, count:], vocabulary * (count + 1), rng)
            length = part.stop - part.start
            with torch.no_grad():
                teacher = self.target.logits(states[:, part.start + 1 : part.stop + count])
            losses = [
                divergence(teacher[:, i : i + length], self.target.logits(each))
                for i, each in enumerate(self.foretelling(states[:, part]))
            ]
        shares = [_FALLING**i for i in range(count)]
        total = torch.stack([share * each for share, each in zip(shares, losses, strict=True)])
        return total.sum() / sum(shares)

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        def foretold(text: Written) -> Tensor:
            states = self.target.last_states(torch.tensor([text.tokens]))[0]
            logits = [self.target.logits(each) for each in self.foretelling(states)]
            return torch.stack([each.topk(3).indices for each in logits], 1)

        return offset_scores(texts, len(self.weights), foretold)

    def write(self, directory: Path, trained: Scores) -> None:
        tensors = {f"heads.{i}.weight": weight for i, weight in enumerate(self.weights)}
        tensors |= {f"heads.{i}.bias": bias for i, bias in enumerate(self.biases)}
        write_draft(directory, self.target, "medusa", tensors, trained)
