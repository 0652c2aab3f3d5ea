"""Which checkpoints PyTorch can train for."""

from __future__ import annotations

from pathlib import Path

from ockham.core.errors import ModelError
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.checkpoint.prequantised.find import quantization_config
from ockham.model.hub import resolve
from ockham.model.program.description import read_config


def plain_checkpoint(name: str, otherwise: str) -> Path:
    """Where a model is. Raises ModelError for one that PyTorch cannot train for, which says what to
    do `otherwise`."""
    path = resolve(name)
    if path.is_file():
        raise ModelError(
            f"{name} is a GGUF file, which PyTorch cannot train for; name the checkpoint (a "
            "directory with safetensors, or owner/name on the hub) that it was made from. "
            f"{otherwise}"
        )
    _check_plain(path, name, otherwise)
    return path


def open_plain(path: Path, what: str) -> OpenedModel:
    """A checkpoint, or a GGUF file, whose weights are widened. Raises ModelError for a directory of
    quantised weights; `what` says what they are for."""
    if path.is_dir():
        _check_plain(path, f"{what} {path}")
    return open_model(path)


def _check_plain(path: Path, name: str, otherwise: str = "") -> None:
    if quantization_config(read_config(path)) is not None:
        raise ModelError(
            f"{name} is quantised, or packed by `ockham convert`; name the checkpoint that it was "
            f"made from. {otherwise}".rstrip()
        )
