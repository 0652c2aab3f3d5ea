"""Based (Arora et al. 2024, arXiv:2402.18668) in PyTorch, from its published formulas: what
transformers does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu, softmax


class Based:
    """A checkpoint of `tiny_based`'s layout, a prompt at a time and all of its tokens at once."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tensors = load_file(directory / "model.safetensors")

    def logits(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """Each prompt alone: (T, V)."""
        with torch.no_grad():
            return [self._of(torch.tensor(prompt)).numpy() for prompt in prompts]

    def _of(self, tokens: torch.Tensor) -> torch.Tensor:
        table = self.tensors["transformer.embeddings.word_embeddings.weight"]
        x = table[tokens]
        for layer in range(self.config["n_layer"]):
            prefix = f"transformer.layers.{layer}."
            h = self._norm(x, f"{prefix}norm1")
            if layer in self.config["alt_mixer_2_layers"]:
                x = x + self._window(h, f"{prefix}mixer.")
            elif layer in self.config["alt_mixer_layers"]:
                x = x + self._linear(h, f"{prefix}mixer.")
            else:
                x = x + self._convolved(h, f"{prefix}mixer.")
            up, gate = self._product(self._norm(x, f"{prefix}norm2"), f"{prefix}mlp.fc1").chunk(
                2, -1
            )
            x = x + self._product(silu(gate) * up, f"{prefix}mlp.fc2")
        return self._norm(x, "transformer.ln_f") @ table.T

    def _convolved(self, h: torch.Tensor, prefix: str) -> torch.Tensor:
        first, second = self._product(h, f"{prefix}in_proj").chunk(2, -1)
        weight = self.tensors[f"{prefix}conv.conv.weight"]
        before = torch.cat([first.new_zeros(weight.shape[2] - 1, first.shape[1]), first])
        summed = torch.nn.functional.conv1d(before.T, weight, groups=len(weight)).T
        return self._product(silu(summed) * second, f"{prefix}out_proj")

    def _linear(self, h: torch.Tensor, prefix: str) -> torch.Tensor:
        """The quadratic form: weights of all pairs of tokens at once."""
        heads = self.config["alt_mixer"]["num_heads"]
        q, k, v = (
            self._product(h, f"{prefix}proj_{name}").unflatten(1, (heads, -1)).transpose(0, 1)
            for name in "qkv"
        )
        product = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        weights = torch.tril(1 + product + product**2 / 2)
        mixed = (weights / (weights.sum(-1, keepdim=True) + 1e-12)) @ v
        return self._product(mixed.transpose(0, 1).flatten(1), f"{prefix}out_proj")

    def _window(self, h: torch.Tensor, prefix: str) -> torch.Tensor:
        qkv = self._product(h, f"{prefix}Wqkv").unflatten(1, (3, self.config["n_head"], -1))
        q, k, v = qkv.permute(1, 2, 0, 3)
        half, places = q.shape[-1] // 2, torch.arange(len(h))
        angles = places[:, None] / 10_000.0 ** (torch.arange(half) / half)

        def turned(x: torch.Tensor) -> torch.Tensor:
            a, b = x[..., :half], x[..., half:]
            cos, sin = angles.cos(), angles.sin()
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        scores = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(q.shape[-1])
        back = places[:, None] - places[None, :]
        seen = (back >= 0) & (back <= self.config["alt_mixer_2"]["window_size"] // 2)
        mixed = softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v
        return self._product(mixed.transpose(0, 1).flatten(1), f"{prefix}out_proj")

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        spread = torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
        return x / spread * self.tensors[f"{name}.weight"]

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias
