"""Channels of feed-forwards that go to zero while a model learns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ockham.core.arrays import Doubles, Longs
from ockham.core.errors import ConfigError
from ockham.core.seams import FeedForwardNames
from ockham.training.decoder import Decoder, Healed
from ockham.weights.widths import WidthOptions, choose

STAYS, GOING, GONE = 0, 1, 2
_BEGIN, _END = 0.2, 0.8
"""The shares of the steps before channels go, and after all have."""


class Gradual(Healed):
    """A model that learns the distributions of its teacher, and of which channels go meanwhile.

    HESSO (Chen et al. 2024, arXiv:2409.09085): a channel's rows of gate and up and its column of
    down are one group. In each of some periods the groups of least importance are chosen, over all
    feed-forwards, and are brought to zero in equal steps. Importance is the mean of five shares,
    each of the sum over all groups: the magnitude |x| (twice, as the groups of a model are of one
    size), 1 - cos(x, g), |x g| and (x g)^2 / 2, of weights x and their gradient g. The corrective
    cycle of HESSO-CRIC is left out.
    """

    def __init__(
        self,
        learned: Decoder,
        teacher: Decoder,
        parts: Mapping[str, FeedForwardNames],
        options: WidthOptions,
        periods: int,
    ) -> None:
        """`parts` are the feed-forwards by the name of their `down`. Raises ConfigError where gate
        and up are stored as one tensor, and where the options remove nothing."""
        super().__init__(learned, teacher)
        self._parts, self._options, self._periods = dict(parts), options, periods
        for number, part in enumerate(self._parts.values()):
            for name in (part.gate, part.up, part.down):
                if name is not None and not learned.has(name):
                    raise ConfigError(
                        f"{name!r} is a part of a stored tensor; channels go gradually where each "
                        "projection is a tensor of its own."
                    )
            width = learned.tensor(part.down).shape[1]
            self.register_buffer(f"state{number}", torch.zeros(width, dtype=torch.int8))
        with torch.no_grad():
            choose(self._importance(), options)

    def kept(self) -> dict[str, Longs]:
        """The channels that are left, by `down`."""
        return {
            name: np.flatnonzero((self._state(number) != GONE).numpy())
            for number, name in enumerate(self._parts)
        }

    @torch.no_grad()
    def moved(self, step: int, steps: int) -> None:
        """See `Learner`."""
        begin = round(_BEGIN * steps)
        span = max(1, round((_END - _BEGIN) * steps) // self._periods)
        period, at = divmod(step - begin, span)
        if step < begin:
            return
        if period < self._periods:
            if at == 0:
                self._choose(self._options.share * (period + 1) / self._periods)
            self._scale(GOING, (span - at - 1) / (span - at))
            if at == span - 1:
                for number in range(len(self._parts)):
                    state = self._state(number)
                    state[state == GOING] = GONE
        self._scale(GONE, 0.0)

    def _choose(self, share: float) -> None:
        """Mark the channels that go next, so that this share of all will be gone."""
        found = self._importance()
        scores = {
            name: np.where(self._state(number).numpy() == STAYS, own, -1.0)
            for number, (name, own) in enumerate(found.items())
        }
        options = WidthOptions(share, self._options.multiple, self._options.even)
        try:
            kept = choose(scores, options)
        except ConfigError:
            return  # less than a step in this period; the last one has the whole share
        for number, name in enumerate(self._parts):
            state = self._state(number)
            goes = np.ones(len(state), bool)
            goes[kept[name]] = False
            state[torch.from_numpy(goes) & (state == STAYS)] = GOING

    def _importance(self) -> dict[str, Doubles]:
        """Of each channel, by `down`; all together sum to 1."""
        rows: list[Tensor] = []
        for part in self._parts.values():
            pairs = [self._group(name, by_row) for name, by_row in _tensors(part)]
            x, g = (torch.cat(each, 1) for each in zip(*pairs, strict=True))  # (I, 3 D)
            size, slope = x.norm(dim=1), (x * g).sum(1)
            cosine = slope / (size * g.norm(dim=1) + 1e-30)
            rows.append(torch.stack((size, size, 1 - cosine, slope.abs(), slope**2 / 2)))
        sums = torch.cat(rows, 1).double().sum(1, keepdim=True)
        shares = [(own.double() / (sums + 1e-300)).mean(0).numpy() for own in rows]
        return dict(zip(self._parts, shares, strict=True))

    def _group(self, name: str, by_row: bool) -> tuple[Tensor, Tensor]:
        """The weights and gradients of a matrix, a channel in each row."""
        values = self.learned.tensor(name)
        gradient = torch.zeros_like(values) if values.grad is None else values.grad
        return (values, gradient) if by_row else (values.T, gradient.T)

    def _scale(self, which: int, factor: float) -> None:
        for number, part in enumerate(self._parts.values()):
            chosen = self._state(number) == which
            for name, by_row in _tensors(part):
                values = self.learned.tensor(name)
                if by_row:
                    values[chosen] *= factor
                else:
                    values[:, chosen] *= factor

    def _state(self, number: int) -> Tensor:
        state: Tensor = self.get_buffer(f"state{number}")
        return state


def _tensors(part: FeedForwardNames) -> list[tuple[str, bool]]:
    """A feed-forward's matrices, and whether a channel is a row there."""
    gate = [] if part.gate is None else [(part.gate, True)]
    return [*gate, (part.up, True), (part.down, False)]
