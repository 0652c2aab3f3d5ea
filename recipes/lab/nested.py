"""The lab model whose first channels are smaller models: what `ockham train nested` is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ockham.training.nested import NestedSettings, train_nested

SEED = 1
PLAN: dict[str, Any] = {
    "widths": (0.25, 0.5),
    "tokens": 819_200,
    "context": 512,
    "batch_tokens": 1024,
    "rate": 1e-3,
    "data_weight": 0.25,
}
"""Beside the texts of texts.py (`NESTED_MIX`)."""


def train_lab_nested(data: Path, out: Path, tell: Callable[[str], None] = print) -> None:
    """Train it, and write it to the new directory ``out``."""
    tell(
        json.dumps(train_nested(NestedSettings("lab", out, data=(data,), seed=SEED, **PLAN), tell))
    )
