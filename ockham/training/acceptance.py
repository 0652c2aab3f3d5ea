"""The head that foretells whether a draft model's token will be accepted (SpecDec++,
arXiv:2405.19715, paper 101), so that a draft ends before a rejection becomes likely.

Labels are whether the draft model's likeliest token is the target's. The head is asked for a token
whose predecessors are all accepted, and these are the target's own text; so it learns on that text,
and needs no mixture of drafted tokens as in the paper. Rejections weigh more, as there; what that
shifts the chances by is the logarithm of the weight, which is added to the bias at the end, so that
the head gives the chance itself.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.model.checkpoint.draft_files import ACCEPTANCE_FILE
from ockham.training.draft_model import load_draft_model
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student
from ockham.training.target import Target, fast
from ockham.training.writing import save_tensors

REJECTION_WEIGHT = 6.0
_BINS = 10


class AcceptanceStudent(Student):
    """One hidden layer, as wide as the draft model."""

    def __init__(self, target: Target, draft_model: Path, seed: int) -> None:
        super().__init__()
        self.target = target
        self.directory = draft_model
        self._frozen: list[Any] = [load_draft_model(target, draft_model)]  # no part of the student
        width = self.draft.config.hidden_size
        self.rate = min(3e-3, 0.4 / width)  # entries of a matrix are the smaller, the wider it is
        generator = torch.Generator().manual_seed(seed)
        sample = torch.arange(256)[None] % target.vocab_size
        with torch.no_grad():
            size = self._draft_states(sample).square().mean().sqrt()
        start = torch.randn(width, width, generator=generator) / (size * math.sqrt(width))
        self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(width))
        self.out_weight = nn.Parameter(torch.zeros(1, width))
        self.out_bias = nn.Parameter(torch.full((1,), -math.log(REJECTION_WEIGHT)))

    @property
    def draft(self) -> Any:
        return self._frozen[0]

    def odds(self, states: Tensor) -> Tensor:
        """The logarithm of the weighted odds, of the draft model's states (..., d'): (...)."""
        inner = F.silu(F.linear(states, self.weight, self.bias))
        return F.linear(inner, self.out_weight, self.out_bias)[..., 0]

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        with fast(), torch.no_grad():
            states, accepted = self._examples(ids)
        weights = torch.where(accepted, 1.0, REJECTION_WEIGHT)
        return F.binary_cross_entropy_with_logits(
            self.odds(states.float()), accepted.float(), weights
        )

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        chances, labels = [], []
        for text in texts:
            ids = torch.tensor([text.tokens[:-1]])
            states, accepted = self._examples(ids)
            odds = self.odds(states[0, text.prompt - 1 :]) + math.log(REJECTION_WEIGHT)
            chances.append(odds.sigmoid())
            labels.append(accepted[0, text.prompt - 1 :])
        return judged(torch.cat(chances).numpy(), torch.cat(labels).numpy())

    def write(self, directory: Path, trained: Scores) -> None:
        """A copy of the draft model, with the head beside it."""
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)
        tensors = {
            "weight": self.weight,
            "bias": self.bias,
            "out.weight": self.out_weight,
            "out.bias": self.out_bias + math.log(REJECTION_WEIGHT),
        }
        values = {name: value.detach().float().clone() for name, value in tensors.items()}
        save_tensors(values, directory / ACCEPTANCE_FILE, {"trained": json.dumps(trained)})

    def _examples(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The draft model's last states (B, T, d'), and whether what it says then is what the
        target says."""
        states = self._draft_states(ids)
        drafted = self.draft.lm_head(self.draft.get_decoder().norm(states)).argmax(-1)
        said = self.target.logits(self.target.last_states(ids)).argmax(-1)
        return states, drafted == said

    def _draft_states(self, ids: Tensor) -> Tensor:
        """Its residual stream before the last norm."""
        found: list[Tensor] = []
        norm = self.draft.get_decoder().norm
        hook = norm.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            self.draft.get_decoder()(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return found[0]


def judged(chances: np.ndarray[Any, Any], accepted: np.ndarray[Any, Any]) -> Scores:
    """How well chances separate what was accepted (the area under the ROC curve, and the log loss
    beside that of always saying the mean), and how far they are from what happened (the expected
    calibration error, of ten bins)."""
    accepted = accepted.astype(np.float64)
    mean = float(accepted.mean())
    order = np.empty(len(chances))
    order[np.argsort(chances, kind="stable")] = np.arange(1, len(chances) + 1)
    positives, negatives = accepted.sum(), len(accepted) - accepted.sum()
    ranks = float(order[accepted > 0].sum()) - positives * (positives + 1) / 2
    bins = np.minimum((chances * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(chances[bins == b].mean() - accepted[bins == b].mean()) * (bins == b).mean()
        for b in range(_BINS)
        if (bins == b).any()
    ]
    return {
        "accepted": round(mean, 4),
        "auc": round(float(ranks / (positives * negatives)), 4) if positives * negatives else None,
        "log_loss": round(_log_loss(chances, accepted), 4),
        "log_loss_of_mean": round(_log_loss(np.full(len(accepted), mean), accepted), 4),
        "calibration_error": round(float(sum(gaps)), 4),
        "tokens": len(accepted),
    }


def _log_loss(chances: np.ndarray[Any, Any], accepted: np.ndarray[Any, Any]) -> float:
    safe = np.clip(chances.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(accepted * np.log(safe) + (1 - accepted) * np.log(1 - safe)).mean())
