"""Heads that foretell, from the input of a layer, how much later rows look at a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats
from ockham.model.checkpoint.keep_files import SHARES
from ockham.training.keep_labels import Labels

PENALTY = 10.0
"""Of the ridge regression, in units of one row."""
INNER = 64
BATCH, RATE, SMOOTHED = 256, 2e-3, 1.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """The tensors of a file of heads, and of the held-out rows how well they are foretold."""

    tensors: dict[str, Floats]
    scores: dict[str, Any]


def linear(labels: Labels) -> Fitted:
    """One linear head for each layer, by ridge regression."""
    weights, biases, foretold = [], [], []
    for inputs, wanted in zip(labels.inputs, labels.labels, strict=True):
        x = _with_one(inputs)
        known = ~labels.held_out
        a, b = x[known], wanted[known].astype(np.float64)
        found = np.linalg.solve(a.T @ a + PENALTY * np.eye(a.shape[1]), a.T @ b)
        weights.append(found[:-1].T)
        biases.append(found[-1])
        foretold.append(x[labels.held_out] @ found)
    tensors = {"weights": np.stack(weights), "biases": np.stack(biases)}
    return _fitted(tensors, np.stack(foretold), labels)


def with_inner(labels: Labels, steps: int, seed: int, tell: Callable[[str], None]) -> Fitted:
    """A head with an inner layer of `INNER` for each layer, by gradient descent on the smooth
    absolute error."""
    import torch
    from torch import Tensor

    torch.manual_seed(seed)
    known = torch.from_numpy(~labels.held_out)
    parts: dict[str, list[Tensor]] = {"inner": [], "inner_biases": [], "weights": [], "biases": []}
    foretold = []
    for number, (inputs, wanted) in enumerate(zip(labels.inputs, labels.labels, strict=True)):
        x, y = torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(wanted)
        middle = y[known].mean(dim=0)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], INNER), torch.nn.SiLU(), torch.nn.Linear(INNER, y.shape[1])
        )
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        own, aims = x[known], (y - middle)[known]
        for _ in range(steps):
            rows = torch.randint(len(own), (BATCH,))
            loss = torch.nn.functional.smooth_l1_loss(net(own[rows]), aims[rows], beta=SMOOTHED)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rates.step()
        first, last = net[0], net[2]
        assert isinstance(first, torch.nn.Linear), "as it was made"
        assert isinstance(last, torch.nn.Linear), "as it was made"
        with torch.no_grad():
            foretold.append((net(x[~known]) + middle).numpy())
            found = (first.weight, first.bias, last.weight, last.bias + middle)
            for of_part, tensor in zip(parts.values(), found, strict=True):
                of_part.append(tensor.detach())
        tell(f"trained layer {number + 1} of {len(labels.inputs)}")
    tensors = {name: torch.stack(of_part).numpy() for name, of_part in parts.items()}
    return _fitted(tensors, np.stack(foretold), labels)


def _with_one(inputs: npt.NDArray[np.floating[Any]]) -> Doubles:
    x = inputs.astype(np.float64)
    return np.concatenate((x, np.ones((len(x), 1))), axis=1)


def _fitted(tensors: dict[str, Any], foretold: Doubles, labels: Labels) -> Fitted:
    """`foretold` (L, N, H) are the scores of the held-out rows."""
    wanted = labels.labels[:, labels.held_out].astype(np.float64)
    left = np.square(foretold - wanted).sum(axis=1)
    spread = np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum(axis=1)
    quantiles = np.quantile(foretold, np.linspace(0.0, 1.0, SHARES + 1))
    arrays = {**tensors, "quantiles": quantiles}
    return Fitted(
        {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()},
        {
            "held_out_tokens": int(labels.held_out.sum()),
            "explained": round(float(1.0 - left.sum() / spread.sum()), 3),
            "explained_by_layer": [
                round(float(1.0 - a / b), 3)
                for a, b in zip(left.sum(axis=1), spread.sum(axis=1), strict=True)
            ],
        },
    )
