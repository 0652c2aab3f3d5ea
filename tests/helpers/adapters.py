"""Random PEFT adapters on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ockham.core.arrays import Floats

TINY = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }.items()
}
"""The modules of tests.helpers.tiny's Llama that an adapter may change: outputs, inputs."""


def write_adapter(
    directory: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8,
    shapes: Mapping[str, tuple[int, int]] = TINY,
    spread: float = 0.3,
    **config: Any,
) -> Path:
    """An adapter of these modules, with normal factors; `config` are further fields of its file."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Floats] = {}
    for module, (outputs, inputs) in shapes.items():
        prefix = f"base_model.model.{module}.lora_"
        for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            values = spread * rng.standard_normal(shape)
            tensors[f"{prefix}{name}.weight"] = values.astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
        "bias": "none",
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    return directory
