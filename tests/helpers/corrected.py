"""Checkpoints whose products are corrected."""

from __future__ import annotations

from pathlib import Path

from ockham.core.config import EngineConfig
from ockham.model import converting

MIX = {"*q_proj*": "int4:32+lorc:rank=5", "*v_proj*": "fp4+lorc:rank=3", "down": "q5_0+lorc:rank=9"}
"""A matrix of several parts, of which two are corrected, and one that is alone."""


def corrected(checkpoint: Path, quantization: str, correction: str = "lorc:rank=12") -> Path:
    """The directory beside a checkpoint that it is converted to."""
    out = checkpoint.with_name(f"{checkpoint.name}-corrected")
    config = EngineConfig(model=str(checkpoint), quantization=quantization)
    converting.convert(config, out, lambda line: None, correction=correction)
    return out


def corrected_in_a_mix(checkpoint: Path) -> Path:
    """The same, where single tensors are corrected."""
    out = checkpoint.with_name(f"{checkpoint.name}-mixed")
    config = EngineConfig(model=str(checkpoint), quantization="int4:32")
    converting.convert(config, out, lambda line: None, mix=MIX)
    return out
