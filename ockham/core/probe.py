"""A probe: what a linear function of a hidden state says of how a text will end."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError

FILE = "probe.safetensors"
_FIELDS = "ockham_probe"


class ProbeFacts(msgspec.Struct, frozen=True):
    """What a probe was made of. `layer` is the layer after which states are read (from 0), `model`
    the name of the model, `task` what its texts were."""

    layer: int
    model: str
    task: str


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

    def encoded(self) -> bytes:
        """The file of the probe."""
        tensors = {"weight": self.weight, "bias": np.array([self.bias], np.float32)}
        fields = msgspec.json.encode(self.facts).decode()
        encoded: bytes = save(tensors, metadata={_FIELDS: fields})
        return encoded


def load_probe(path: Path) -> Probe:
    """The probe of a directory, or of a file. Raises ConfigError for anything else."""
    file = path / FILE if path.is_dir() else path
    try:
        with safe_open(file, "numpy") as opened:
            fields = (opened.metadata() or {}).get(_FIELDS, "")
            facts = msgspec.json.decode(fields, type=ProbeFacts)
            weight, bias = opened.get_tensor("weight"), opened.get_tensor("bias")
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{file} is no probe ({error}); `ockham train probe` makes one."
        ) from None
    if weight.ndim != 1 or bias.shape != (1,) or not np.isfinite(weight).all():
        raise ConfigError(f"{file} is no probe: its tensors are not a vector and a number.")
    return Probe(facts, weight.astype(np.float32), float(bias[0]))
