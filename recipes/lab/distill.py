"""Distillation: a small model learns the distributions of a large one (Hinton et al., "Distilling
the Knowledge in a Neural Network", 2015, arXiv:1503.02531), on text and on what that one wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.lab.data import Streams
from recipes.lab.model import LabModel
from recipes.lab.plan import Plan
from recipes.lab.train import Trainer


class Distiller(Trainer):
    """A trainer whose loss is the divergence KL(teacher || model), at all positions and over the
    whole vocabulary, at temperature 1."""

    def __init__(
        self,
        plan: Plan,
        streams: Streams,
        folder: Path,
        teacher: LabModel,
        start: Path,
        device: str = "cpu",
    ) -> None:
        """``start`` are the teacher's weights, as for any plan that starts from weights."""
        self.teacher = teacher.requires_grad_(False).to(device)
        super().__init__(plan, streams, folder, start=start, device=device)

    def _start_phase(self) -> None:
        super()._start_phase()
        teacher, head = self.teacher, self.model.head

        def divergence(hidden: Tensor, ids: Tensor) -> Tensor:
            with self.autocast():
                return kl_divergence(teacher(ids), head(hidden))

        self._divergences = (
            torch.compile(divergence, dynamic=False) if self.plan.compiled else divergence
        )

    def _nats(self, ids: Tensor, weights: Tensor) -> Tensor:
        inputs = ids[:, :-1]
        return (self._divergences(self._hidden(inputs), inputs) * weights).sum()


def kl_divergence(teacher: Tensor, model: Tensor) -> Tensor:
    """Of two tensors of logits (..., V), in nats: (...)."""
    expected, learned = (F.log_softmax(logits.float(), -1) for logits in (teacher, model))
    return (expected.exp() * (expected - learned)).sum(-1)
