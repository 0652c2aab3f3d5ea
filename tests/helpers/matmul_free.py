"""MatMul-free LM (Zhu et al. 2024, arXiv:2406.02528) in PyTorch, from its published formulas: what
transformers does not have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu


class MatMulFree:
    """A checkpoint of HGRNBitForCausalLM. Matrices are ternary: of a weight the ratio to the mean
    magnitude of its matrix, rounded, times that mean. Where `eight_bits`, what they multiply is
    rounded to 8 bits with one scale for a token, as in training; where not, it is as it is."""

    def __init__(self, directory: Path, *, eight_bits: bool = True) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = load_file(directory / "model.safetensors")
        self.eight_bits = eight_bits

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """Each prompt alone: (T, V)."""
        with torch.no_grad():
            return [self._of(torch.tensor(prompt)).numpy() for prompt in prompts]

    def _of(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tensors["model.embeddings.weight"][tokens]
        layers = self.config["num_hidden_layers"]
        bounds: list[torch.Tensor | None] = [None] * layers
        if self.config["use_lower_bound"]:
            shares = torch.softmax(self.tensors["model.lower_bounds"], 0)
            bounds = list(torch.cumsum(shares, 0) - shares[0])
        for layer, bound in enumerate(bounds):
            prefix = f"model.layers.{layer}."
            h = self._norm(x, f"{prefix}attn_norm", self.config["rms_norm_eps"])
            x = x + self._mixed(h, f"{prefix}attn.", bound)
            h = self._norm(x, f"{prefix}mlp_norm", self.config["rms_norm_eps"])
            gate, up = self._product(h, f"{prefix}mlp.gate_proj").chunk(2, -1)
            x = x + self._product(silu(gate) * up, f"{prefix}mlp.down_proj")
        return self._product(self._norm(x, "model.norm", self.config["rms_norm_eps"]), "lm_head")

    def _mixed(self, h: torch.Tensor, prefix: str, bound: torch.Tensor | None) -> torch.Tensor:
        forget = torch.sigmoid(self._product(h, f"{prefix}f_proj"))
        if bound is not None:
            forget = bound + (1 - bound) * forget
        entering = silu(self._product(h, f"{prefix}i_proj")) * (1 - forget)
        state, states = torch.zeros_like(h[0]), []
        for kept, new in zip(forget, entering, strict=True):
            state = kept * state + new
            states.append(state)
        gate = self._product(h, f"{prefix}g_proj")
        gate = self._norm(gate, f"{prefix}g_norm", self.config["rms_norm_eps"])
        return self._product(gate * silu(torch.stack(states)), f"{prefix}o_proj")

    def _norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        spread = torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
        return x / spread * self.tensors[f"{name}.weight"]

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = self._norm(x, f"{name}.norm", 1e-6)
        if self.eight_bits:
            scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            x = (x * scale).round().clamp(-128, 127) / scale
        weight = self.tensors[f"{name}.weight"]
        mean = weight.abs().mean().clamp(min=1e-5)
        return x @ ((weight / mean).round().clamp(-1, 1) * mean).T
