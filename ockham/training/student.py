"""What is trained: the protocols of all methods, and the losses that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.training.outputs import Written

TEXT, OUTPUTS = "text", "outputs"
"""What a step reads: the data as it is, or what the target wrote."""

MOST_LOGITS = 1 << 25
"""Values of a batch's logits, for one offset and another; of longer rows a part is drawn."""

Scores = dict[str, Any]


class Learner(nn.Module):
    """Parameters to learn."""

    rate: float
    """The learning rate's peak, unless told otherwise."""
    text_share = 0.0
    """The share of the tokens that is read from text first."""

    @abstractmethod
    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        """The mean loss of rows of token ids (B, T + 1)."""

    def moved(self, step: int, steps: int) -> None:
        """The step of this number, of so many, has been made; its gradients are still there."""

    def optimisers(self, rate: float) -> dict[str, torch.optim.Optimizer]:
        """Those of the parameters, by a name."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return {"all": torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)}


class Student(Learner):
    """What drafts, beside a frozen target."""

    @abstractmethod
    def scores(self, texts: Sequence[Written]) -> Scores:
        """How well it foretells what the target wrote greedily after held-out prompts."""

    @abstractmethod
    def write(self, directory: Path, trained: Scores) -> None:
        """Write what is used at run time into an existing directory; `trained` says how it came
        about."""


def divergence(teacher: Tensor, learned: Tensor) -> Tensor:
    """The mean of KL(teacher || learned) of logits (..., V), in nats."""
    expected, found = (F.log_softmax(logits.float(), -1) for logits in (teacher, learned))
    return (expected.exp() * (expected - found)).sum(-1).mean()


def drawn_part(ids: Tensor, values: int, rng: np.random.Generator) -> slice:
    """Positions of rows (B, T) of which not more than `MOST_LOGITS` values are needed, where each
    needs so many."""
    rows, length = ids.shape
    count = max(1, min(length, MOST_LOGITS // (rows * values)))
    start = int(rng.integers(length - count + 1))
    return slice(start, start + count)


def accepted_lengths(right: Sequence[bool], most: int) -> list[int]:
    """From whether each token of a text was foretold, the accepted part of a draft of `most` tokens
    that begins at each: a draft that is right so far is the text itself."""
    runs, run = [], 0
    for each in reversed(right):
        run = run + 1 if each else 0
        runs.append(min(run, most))
    return runs[::-1][: max(0, len(runs) - most + 1)]
