"""Writing the files that `model/checkpoint/draft_files.py` reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ockham.core.owned_files import USUAL_FILE, replacing
from ockham.model.checkpoint.draft_files import CONFIG_FILE, VERSION, WEIGHTS_FILE
from ockham.training.student import Scores
from ockham.training.target import Target


def write_draft(
    directory: Path,
    target: Target,
    method: str,
    tensors: Mapping[str, Tensor],
    trained: Scores,
    **fields: int,
) -> None:
    """draft.json, with `fields` of the method, and draft.safetensors in bf16."""
    config = {
        "method": method,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "num_hidden_layers": len(target.layers),
        **fields,
        "version": VERSION,
        "trained": trained,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    rounded = {name: value.detach().to(torch.bfloat16).clone() for name, value in tensors.items()}
    save_tensors(rounded, directory / WEIGHTS_FILE)


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file that all may read who may read new files of the user's."""
    save_file(tensors, path, metadata)
    give_usual_mode(path)


def give_usual_mode(path: Path) -> None:
    """Files that safetensors writes can be read by their owner alone; make it a file as any."""
    with path.open("rb") as written, replacing(path, USUAL_FILE) as copy:
        shutil.copyfileobj(written, copy)
