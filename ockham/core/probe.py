"""A probe: what a linear function of a hidden state says of how a text will end."""

from __future__ import annotations

import msgspec
import numpy as np

from ockham.core.arrays import Floats


class ProbeFacts(msgspec.Struct, frozen=True):
    """What a probe was made of. `layer` is the layer after which states are read (from 0), `model`
    the name of the model, `task` what its texts were. `at` is "text" for states of all along the
    text, or "prompt" for those of the prompt's last token, before anything is written."""

    layer: int
    model: str
    task: str
    at: str = "text"


class Probe:
    """The chance that a text will be right: 1 / (1 + e^-(weight . state + bias)).

    weight: (hidden_size,).
    """

    def __init__(self, facts: ProbeFacts, weight: Floats, bias: float) -> None:
        self.facts, self.weight, self.bias = facts, weight, bias

    def __call__(self, states: Floats) -> Floats:
        """Chances (n,) of states (n, hidden_size)."""
        z = states.astype(np.float32) @ self.weight + np.float32(self.bias)
        chances: Floats = (1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))).astype(np.float32)
        return chances
