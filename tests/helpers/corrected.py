"""Checkpoints whose products are corrected."""

from __future__ import annotations

from pathlib import Path

from ockham.core.config import EngineConfig
from ockham.model import converting


def corrected(checkpoint: Path, quantization: str, correction: str = "lorc:rank=12") -> Path:
    """The directory beside a checkpoint that it is converted to."""
    out = checkpoint.with_name(f"{checkpoint.name}-corrected")
    config = EngineConfig(model=str(checkpoint), quantization=quantization)
    converting.convert(config, out, lambda line: None, correction=correction)
    return out
