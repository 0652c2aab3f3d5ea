"""A model that runs its middle layers several times, each row as often as it decides.

Mixture-of-Recursions (Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for
Adaptive Token-Level Computation", 2025, arXiv:2507.10524), in its Middle-Cycle form: the first and
the last layer are their own, and those between run up to `Shape.passes` times. Before each pass but
the first a router asks every row that took the pass before whether it goes on; a row that does not
goes to the last layer as it is. In a pass a row sees the keys of the rows that take it too. The
decision is a hard one forwards and a soft one backwards, so that it is the same while the model is
trained and while it is used, and follows from the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipes.lab.data import Streams
from recipes.lab.distill import kl_divergence
from recipes.lab.model import LabModel, Shape, rotary_tables
from recipes.lab.plan import Plan
from recipes.lab.train import Trainer

_LEAST_SQUARE = 1e-6
_ALWAYS, _NEVER = 1e4, -1e4
"""Beside which the scores of routers do not count."""
_BUDGET_WEIGHT = 4.0
"""Of the squares of what the shares of active rows are off, beside the divergence."""
_FIXED_EVERY = 4
"""Of so many steps with routers, one has a fixed depth."""


class Hidden(NamedTuple):
    """What the trunk gives."""

    states: Tensor
    """(B, T, hidden), normed."""
    soft: Tensor
    """(passes - 1, B, T): how far each row goes on to each pass."""
    active: Tensor
    """(passes - 1, B, T): whether it does, 0 or 1."""


class RecursiveModel(LabModel):
    """The lab model with its middle layers shared."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__(shape, seed)
        self.model.routers = nn.ModuleList(
            nn.Linear(shape.hidden, 1) for _ in range(shape.passes - 1)
        )
        for router in self.model.routers:
            nn.init.zeros_(router.weight)
            nn.init.zeros_(router.bias)

        self._added = torch.zeros(shape.passes - 1)

    def hidden(self, ids: Tensor) -> Tensor:
        """See `LabModel`; every row goes on where its routers say so, unless `at_depth` does."""
        return self.deep(ids, self._added, None).states

    @contextmanager
    def at_depth(self, depth: int) -> Iterator[None]:
        """Let all rows take so many passes."""
        self._added = fixed_depth(self.shape.passes, depth)
        try:
            yield
        finally:
            self._added = torch.zeros(self.shape.passes - 1)

    @torch.no_grad()
    def shares(self, ids: Tensor) -> list[float]:
        """Of token ids (B, T), the share of the rows that take each pass but the first."""
        found = [self.deep(part, self._added, None).active for part in torch.split(ids, 8)]
        shares: list[float] = torch.cat(found, 1).mean((1, 2)).tolist()
        return shares

    def deep(self, ids: Tensor, added: Tensor, noise: Tensor | None) -> Hidden:
        """Of token ids (B, T), with `added` (passes - 1,) on the scores of each router, and
        `noise` (passes - 1, B, T)."""
        trunk, layers = self.model, self.model.layers
        cos, sin = rotary_tables(self.shape, ids.shape[1])
        x = layers[0](trunk.embed_tokens(ids), cos, sin)
        middle = list(layers)[1:-1]
        for layer in middle:
            x = layer(x, cos, sin)
        rows = torch.arange(ids.shape[1])
        earlier = rows[:, None] > rows
        own = rows[:, None] == rows
        soft: list[Tensor] = []
        hard: list[Tensor] = []
        for number, router in enumerate(trunk.routers):
            with torch.autocast("cpu", enabled=False):  # whether a row goes on is not rounded
                wide = x.float()
                scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + _LEAST_SQUARE)
                scores = router(wide * scale).squeeze(-1) + added[number]
            if noise is not None:
                scores = scores + noise[number]
            likely, goes_on = scores.sigmoid(), (scores > 0).float()
            if number:
                likely, goes_on = likely * soft[-1], goes_on * hard[-1]
            soft.append(likely)
            hard.append(goes_on)
            seen = (earlier & (goes_on[:, None, None, :] > 0)) | own
            deeper = x
            for layer in middle:
                deeper = layer(deeper, cos, sin, seen)
            taken = (goes_on + likely - likely.detach())[..., None]
            x = x + taken.to(x.dtype) * (deeper - x)
        x = layers[-1](x, cos, sin)
        return Hidden(trunk.norm(x), torch.stack(soft), torch.stack(hard))


def fixed_depth(passes: int, depth: int) -> Tensor:
    """What to add to the routers' scores so that all rows take the first `depth` passes."""
    return torch.tensor([_ALWAYS if n + 1 < depth else _NEVER for n in range(passes - 1)])


class RecursiveTrainer(Trainer):
    """A trainer whose model learns the lab model's distributions, first with all passes for every
    row, then with routers that spend a budget.

    Loss: KL(lab model || model) over the weights of the rows' tokens, and the squares of what the
    mean shares of the rows in each pass are away from `Plan.active`.
    """

    def __init__(
        self,
        plan: Plan,
        streams: Streams,
        folder: Path,
        tokenizer: Tokenizer,
        teacher: LabModel,
        start: Path,
    ) -> None:
        """`start` are the teacher's weights."""
        self.teacher = teacher.requires_grad_(False)
        super().__init__(plan, streams, folder, tokenizer, start)

    def _new_model(self, phase: int) -> LabModel:
        return RecursiveModel(self.plan.shape, self.plan.seed)

    def _start_phase(self) -> None:
        super()._start_phase()
        model, teacher = self.model, self.teacher
        assert isinstance(model, RecursiveModel)

        def loss(
            ids: Tensor, weights: Tensor, added: Tensor, noise: Tensor
        ) -> tuple[Tensor, Tensor]:
            with self.autocast():
                found = model.deep(ids, added, noise)
                nats = kl_divergence(teacher(ids), model.head(found.states))
            return (nats * weights).sum(), found.soft.mean((1, 2))

        self._losses: Callable[..., tuple[Tensor, Tensor]] = (
            torch.compile(loss, dynamic=False) if self.plan.compiled else loss
        )

    def _nats(self, ids: Tensor, weights: Tensor) -> Tensor:
        passes, step, plan = self.plan.shape.passes, self.step, self.plan
        done = (step - plan.routed_from) / max(1, plan.steps - plan.routed_from)
        added, noise = fixed_depth(passes, passes), torch.zeros(passes - 1, *ids[:, 1:].shape)
        routed = done >= 0 and step % _FIXED_EVERY
        if routed:
            generator = torch.Generator().manual_seed(plan.seed + step)
            uniform = torch.rand(noise.shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
            noise = torch.logit(uniform) * max(0.0, 1 - 1.25 * done)
            added = torch.zeros(passes - 1)
        elif done >= 0:
            added = fixed_depth(passes, 1 + step // _FIXED_EVERY % passes)
        nats, shares = self._losses(ids[:, :-1], weights, added, noise)
        if routed:
            off = (shares - torch.tensor(plan.active)).square().sum()
            nats = nats + _BUDGET_WEIGHT * off * weights.sum()
        return nats
