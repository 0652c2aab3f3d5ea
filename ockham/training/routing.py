"""Routers of a decoder's feed-forwards, learned beside the model that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import ConfigError
from ockham.kernels.ops import FeedForward
from ockham.training.decoder import Decoder
from ockham.training.student import Learner, divergence
from ockham.training.target import fast

PANEL = 16
"""Neurons are counted in steps of so many, in which matrices are packed."""
LEAST_SQUARE = 1e-6
BUDGET_WEIGHT = 20.0
"""Of the square of what the mean share of the neurons is off, beside the KL."""
HOT, COLD = 2.0, 0.3
"""The temperature of the choices at the first step and at the last one."""


class Routed(Learner):
    """A router for each layer, which gives each row a choice of widths.

    Adaptive computation modules (Wojcik et al. 2023, arXiv:2312.10193) choose by a Gumbel softmax
    whose hard choice is taken forwards and whose soft one backwards (Jang et al. 2017,
    arXiv:1611.01144). The loss is KL(whole model || routed) and the square of what the mean share
    of all layers and rows is away from the budget, as in Duo-LLM (arXiv:2410.10846).
    """

    rate = 3e-3
    text_share = 1.0

    def __init__(self, model: Decoder, shares: Sequence[float], budget: float) -> None:
        """Raises ConfigError where a layer has no feed-forward of its own."""
        super().__init__()
        self._model = [model.requires_grad_(False)]  # in a list, as it is no part of the state
        ops = model.feed_forwards()
        if not ops or any(op.shortcut is not None for op in ops):
            raise ConfigError(
                "routers are for models whose layers have feed-forwards of their own."
            )
        self._layer = {id(op): number for number, op in enumerate(ops)}
        self._budget = budget
        self._widths = [
            [min(op.neurons, round(share * op.neurons / PANEL) * PANEL) for share in shares]
            for op in ops
        ]
        counts = torch.tensor(self._widths, dtype=torch.float32)
        whole = torch.tensor([[op.neurons] for op in ops], dtype=torch.float32)
        self._shares = counts / whole
        layers, hidden = len(ops), ops[0].down.out_features
        self.weights = nn.Parameter(torch.zeros(layers, len(shares), hidden))
        self.biases = nn.Parameter(torch.zeros(layers, len(shares)))
        self._temperature = HOT

    def optimisers(self, rate: float) -> dict[str, torch.optim.Optimizer]:
        """Adam for the routers."""
        return {"routers": torch.optim.Adam([self.weights, self.biases], lr=rate)}

    def moved(self, step: int, steps: int) -> None:
        """The choices harden as the training goes on."""
        self._temperature = HOT * (COLD / HOT) ** (step / max(1, steps - 1))

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        inputs = ids[:, :-1]
        noise = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        spent: list[Tensor] = []

        def choose(layer: int, scores: Tensor) -> Tensor:
            uniform = torch.rand(scores.shape, generator=noise).clamp_(1e-9, 1 - 1e-7)
            gumbel = -torch.log(-torch.log(uniform))
            soft = ((scores + gumbel) / self._temperature).softmax(-1)
            hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
            spent.append((soft * self._shares[layer]).sum(-1).mean())
            return hard + soft - soft.detach()

        with fast():
            with torch.no_grad():
                expected = self._model[0](inputs)
            logits = self._run(inputs, choose)
            off = torch.stack(spent).mean() - self._budget
            return divergence(expected, logits) + BUDGET_WEIGHT * off.square()

    @torch.no_grad()
    def measured(self, ids: Tensor, choice: int | None = None) -> tuple[float, float]:
        """The mean KL(whole model || routed) of rows of token ids (B, T + 1) in nats, and the share
        of the neurons that ran; with one `choice` for all rows where it is given."""
        kl, share = 0.0, 0.0
        for row in ids:
            spent: list[Tensor] = []

            def choose(layer: int, scores: Tensor, spent: list[Tensor] = spent) -> Tensor:
                chosen = scores.argmax(-1)
                chosen = chosen if choice is None else torch.full_like(chosen, choice)
                hard = F.one_hot(chosen, scores.shape[-1]).float()
                spent.append((hard * self._shares[layer]).sum(-1).mean())
                return hard

            expected = self._model[0](row[None, :-1])
            kl += divergence(expected, self._run(row[None, :-1], choose)).item()
            share += torch.stack(spent).mean().item()
        return kl / len(ids), share / len(ids)

    @torch.no_grad()
    def chosen(self, ids: Tensor) -> list[list[float]]:
        """Of each layer, the share of the rows of token ids (B, T + 1) that make each choice."""
        found = torch.zeros_like(self.biases)

        def choose(layer: int, scores: Tensor) -> Tensor:
            hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).float()
            found[layer] += hard.flatten(0, -2).mean(0)
            return hard

        for row in ids:
            self._run(row[None, :-1], choose)
        result: list[list[float]] = (found / len(ids)).tolist()
        return result

    def routers(self) -> tuple[Ints, Floats, Floats]:
        """Widths, weights and biases, as `WidthRouters` has them."""
        return (
            np.array(self._widths, np.int32),
            self.weights.detach().numpy(),
            self.biases.detach().numpy(),
        )

    def _run(self, ids: Tensor, choose: object) -> Tensor:
        """Logits where `choose(layer, scores)` gives the weight of each choice, (B, T, C)."""
        model = self._model[0]

        def inner(op: FeedForward, x: Tensor, h: Tensor) -> Tensor:
            layer = self._layer[id(op)]
            scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + LEAST_SQUARE)
            scores = F.linear(x.float() * scale, self.weights[layer], self.biases[layer])
            weight = choose(layer, scores)  # type: ignore[operator]
            branch = torch.zeros_like(x)
            for number, width in enumerate(self._widths[layer]):
                if width:
                    own = model.leading(op, h, width)
                    branch = branch + weight[..., number : number + 1] * own
            return branch

        found: Tensor = model(ids, inner=inner)
        return found
