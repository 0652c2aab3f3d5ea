"""EAGLE-3 heads (arXiv:2503.01840): one layer that reads three hidden states of the frozen target,
and the newest token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.core.errors import ModelError
from ockham.model.checkpoint.draft_files import WEIGHTS_FILE
from ockham.model.draft_heads.eagle3 import default_layers
from ockham.model.files.safetensors import SINGLE_FILE
from ockham.model.program.description import ModelDescription, describe, read_config
from ockham.training.chains import chain_scores
from ockham.training.outputs import Written
from ockham.training.student import Scores, Student, divergence, drawn_part
from ockham.training.target import Target, fast
from ockham.training.writing import write_draft

_FALLING = 0.8
"""The weight of a token's loss, beside that of the one before: later ones matter less."""
_DEPTH = 3
"""Tokens that are drafted one after another in training, as at run time (training-time test)."""


class Eagle3Student(Student):
    """The layer with what joins the hidden states; it starts at random and learns the target's
    distributions, through the target's own output head.

    Further tokens are drafted from what the layer itself passes on. Their rows see each other in
    training, and not the rows of the tokens before.
    """

    def __init__(self, target: Target, seed: int) -> None:
        """Raises ModelError for a target whose layers are no Llama's."""
        super().__init__()
        self.description = describe(read_config(target.path))
        _check(self.description, target)
        d = target.hidden_size
        self.rate = min(3e-3, 0.5 / d)  # entries of a matrix are the smaller, the wider it is
        self.target = target
        self.layers = default_layers(len(target.layers))
        own, generator = self.description, torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) / columns**0.5)

        queries, keys = own.heads * own.head_dim, own.kv_heads * own.head_dim
        inner = own.intermediate_size
        self.matrices = nn.ParameterDict(
            {
                "fc": drawn(d, len(self.layers) * d),
                "q_proj": drawn(queries, 2 * d),
                "k_proj": drawn(keys, 2 * d),
                "v_proj": drawn(keys, 2 * d),
                "o_proj": drawn(d, queries),
                "gate_proj": drawn(inner, d),
                "up_proj": drawn(inner, d),
                "down_proj": drawn(d, inner),
            }
        )
        norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm", "norm")
        self.norms = nn.ParameterDict({name: nn.Parameter(torch.ones(d)) for name in norms})

    def carried(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What is carried from the target's rows of ids (B, T), and their last states."""
        last = len(self.target.layers)
        states = self.target.states(ids, [*(layer + 1 for layer in self.layers), last])
        read = torch.cat([states[layer + 1] for layer in self.layers], -1)
        return read @ self.matrices["fc"].T, states[last]

    def foretelling(self, ids: Tensor, carried: Tensor) -> Tensor:
        """What is passed on by rows of tokens (B, T), of what was carried from the row before each,
        (B, T, d)."""
        embedded = self.target.model.get_input_embeddings()(ids)
        normed = self._normed("hidden_norm", carried)
        both = torch.cat([self._normed("input_layernorm", embedded), normed], -1)
        x = carried + self._attended(both) @ self.matrices["o_proj"].T
        inner = self._normed("post_attention_layernorm", x)
        gate = F.silu(inner @ self.matrices["gate_proj"].T)
        found: Tensor = (
            x + (gate * (inner @ self.matrices["up_proj"].T)) @ self.matrices["down_proj"].T
        )
        return found

    def logits(self, passed: Tensor) -> Tensor:
        """What the target's head makes of what is passed on."""
        logits: Tensor = self.target.head(self._normed("norm", passed))
        return logits

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        with fast():
            carried, states = self.carried(ids)
            part = drawn_part(ids[:, 1 + _DEPTH :], 2 * _DEPTH * self.target.vocab_size, rng)
            length = part.stop - part.start
            with torch.no_grad():
                # Row j of the depth k foretells token j + 2 + k.
                teacher = self.target.logits(states[:, part.start + 1 : part.stop + _DEPTH])
            losses, beside = [], carried[:, :-1]
            for depth in range(_DEPTH):
                passed = self.foretelling(ids[:, 1 + depth :], beside)
                expected = teacher[:, depth : depth + length]
                losses.append(divergence(expected, self.logits(passed[:, part])))
                beside = passed[:, :-1]
        shares = [_FALLING**depth for depth in range(_DEPTH)]
        total = torch.stack([share * each for share, each in zip(shares, losses, strict=True)])
        return total.sum() / sum(shares)

    @torch.no_grad()
    def scores(self, texts: Sequence[Written]) -> Scores:
        def logits(ids: Tensor) -> Tensor:
            carried, _ = self.carried(ids)
            return F.pad(self.logits(self.foretelling(ids[:, 1:], carried[:, :-1])), (0, 0, 1, 0))

        return chain_scores(texts, logits)

    def write(self, directory: Path, trained: Scores) -> None:
        names = {"fc": "fc", **{n: f"midlayer.mlp.{n}" for n in ("gate_proj", "up_proj")}}
        names["down_proj"] = "midlayer.mlp.down_proj"
        tensors = {
            f"{names.get(name, f'midlayer.self_attn.{name}')}.weight": matrix
            for name, matrix in self.matrices.items()
        } | {
            f"{'norm' if name == 'norm' else f'midlayer.{name}'}.weight": weight
            for name, weight in self.norms.items()
        }
        write_draft(directory, self.target, "eagle3", tensors, trained)
        (directory / WEIGHTS_FILE).rename(directory / SINGLE_FILE)
        config: dict[str, Any] = read_config(self.target.path) | {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "num_hidden_layers": 1,
            "head_dim": self.description.head_dim,
            "draft_vocab_size": self.target.vocab_size,
        }
        text = json.dumps(config, indent=2) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")

    def _normed(self, name: str, x: Tensor) -> Tensor:
        eps = self.description.norm_eps
        return F.rms_norm(x, x.shape[-1:], self.norms[name], eps)

    def _attended(self, both: Tensor) -> Tensor:
        rows, length, _ = both.shape
        own = self.description
        positions = torch.arange(length)[None]
        cos, sin = self.target.decoder.rotary_emb(both, positions)

        def split(name: str, heads: int) -> Tensor:
            projected: Tensor = both @ self.matrices[name].T
            return projected.view(rows, length, heads, own.head_dim).transpose(1, 2)

        def rotated(y: Tensor) -> Tensor:
            half = own.head_dim // 2
            turned = torch.cat([-y[..., half:], y[..., :half]], -1)
            found: Tensor = y * cos[:, None] + turned * sin[:, None]
            return found

        queries, keys = rotated(split("q_proj", own.heads)), rotated(split("k_proj", own.kv_heads))
        keys, values = (
            each.repeat_interleave(own.heads // own.kv_heads, 1)
            for each in (keys, split("v_proj", own.kv_heads))
        )
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return found.transpose(1, 2).reshape(rows, length, -1)


def _check(description: ModelDescription, target: Target) -> None:
    """Heads are trained for models whose rotary embedding and head a Llama could have."""
    plain = (
        description.embedding_scale == description.logits_scale == 1.0
        and description.final_softcap is None
        and not description.architecture.partial_rotary
        and all(rope is not None for rope in description.ropes)
        and hasattr(target.decoder, "rotary_emb")
        and len(target.layers) >= 4
    )
    if not plain:
        raise ModelError(
            f"{target.path}: EAGLE-3 heads are trained for models like Llama, of at least four "
            "layers, whose embedding and logits have no factor and whose heads are rotated whole; "
            "another method of `ockham draft train` may do."
        )
