"""Low-rank adapters (Hu et al., "LoRA", 2021, arXiv:2106.09685): trained beside frozen weights, and
written as PEFT writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.lab.model import LabModel
from recipes.lab.tokenizer import write_json

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapted(nn.Module):
    """A frozen linear layer W, and what is learned beside it: W + alpha / rank * B A."""

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.weight = linear.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.normal_(self.lora_A, std=inputs**-0.5, generator=generator)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight) + self.scale * low


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.endswith(("lora_A", "lora_B"))


def adapt(model: LabModel, rank: int, alpha: float, seed: int) -> None:
    """Freeze the model and put an adapter beside each matrix of its layers."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.layers:
        for module in layer.children():
            for name, linear in list(module.named_children()):
                if name in TARGETS and isinstance(linear, nn.Linear):
                    setattr(module, name, Adapted(linear, rank, alpha, generator))


def export_adapter(
    model: LabModel, rank: int, alpha: float, base: str, base_sha256: str, folder: Path
) -> None:
    """Write adapter_model.safetensors and adapter_config.json, whose base is the model named
    ``base``; the digest of its weights stands in the safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"base_model.model.{name}.weight": parameter.detach().float().contiguous()
        for name, parameter in model.named_parameters()
        if is_adapter(name)
    }
    path = folder / "adapter_model.safetensors"
    save_file(weights, path, metadata={"format": "pt", "base_sha256": base_sha256})
    path.chmod(0o644)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(TARGETS),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", fields)
