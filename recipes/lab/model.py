"""The lab model as a compact PyTorch module: Llama, or with experts Mixtral, with the parameter
names of Hugging Face.

It computes what `transformers` computes for these architectures (tests compare them) and trains
faster on a CPU, because the compiler sees all of it at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The hyperparameters of the architecture."""

    vocab_size: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    context_tokens: int = 4096
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    experts: int = 0
    """Experts of a layer, each as wide as ``intermediate``; 0 for one MLP for all tokens."""
    experts_per_token: int = 2
    passes: int = 1
    """How often the layers between the first and the last one run."""


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (self.weight * (wide * scale)).to(x.dtype)


def rotary_tables(shape: Shape, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to ``tokens - 1``: each (tokens, head_dim)."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, H, T, D) by position; the halves of D are the two coordinates."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a key and value head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden, key, bias=False)
        self.v_proj = nn.Linear(shape.hidden, key, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None = None) -> Tensor:
        """``seen`` (B, 1, T, T) are the keys that each row sees; those up to its own if None."""
        batch, tokens, _ = x.shape
        width = self.shape.head_dim
        q, k, v = (
            projection(x).view(batch, tokens, -1, width).transpose(1, 2)  # (B, H, T, D)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=True
        )
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return projected


class MLP(nn.Module):
    """Gated feed-forward layer (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class Expert(nn.Module):
    """A gated feed-forward layer under the names that Mixtral gives its parts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.w2 = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.w3 = nn.Linear(shape.hidden, shape.intermediate, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return projected


class Mixture(nn.Module):
    """A layer of experts: each token goes to the few whose gates are the largest, and their outputs
    are added with weights that sum to 1 (Jiang et al., "Mixtral of Experts", 2024,
    arXiv:2401.04088).

    After a pass ``used`` holds how many tokens went to each expert, and ``imbalance`` the loss of
    the Switch Transformer (Fedus et al., 2021, arXiv:2101.03961): 1 where tokens and gates are
    spread evenly, the number of experts where one has all.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.per_token = shape.experts_per_token
        self.gate = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.experts = nn.ModuleList(Expert(shape) for _ in range(shape.experts))
        self.used = torch.zeros(shape.experts, dtype=torch.long)
        self.imbalance = torch.zeros(())

    @torch.compiler.disable  # how many tokens an expert has differs from batch to batch
    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (N, hidden)
        with torch.autocast(x.device.type, enabled=False):  # gates must not be tied by rounding
            gates = F.linear(rows.float(), self.gate.weight).softmax(-1)
        weights, chosen = gates.topk(self.per_token)  # (N, K)
        weights = weights / weights.sum(-1, keepdim=True)
        self.used = chosen.flatten().bincount(minlength=len(self.experts))
        self.imbalance = len(self.experts) * (self.used / chosen.numel() * gates.mean(0)).sum()
        order = chosen.flatten().argsort(stable=True)  # the pairs of token and expert, by expert
        inputs = rows.repeat_interleave(self.per_token, 0)[order].split(self.used.tolist())
        outputs = torch.cat(
            [expert(part) for expert, part in zip(self.experts, inputs, strict=True)]
        )
        counted = torch.arange(len(order), device=order.device)
        places = torch.empty_like(order).scatter_(0, order, counted)
        by_token = outputs[places].unflatten(0, (-1, self.per_token))  # (N, K, hidden)
        return (by_token * weights[..., None]).sum(1).to(x.dtype).view_as(x)


class Layer(nn.Module):
    """One block: attention and MLP or experts, each behind a norm and added to the residual
    stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_epsilon)
        self.branch = "block_sparse_moe" if shape.experts else "mlp"
        self.add_module(self.branch, Mixture(shape) if shape.experts else MLP(shape))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, seen)
        mixed: Tensor = x + getattr(self, self.branch)(self.post_attention_layernorm(x))
        return mixed


class Trunk(nn.Module):
    """Everything below the head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_epsilon)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed


class LabModel(nn.Module):
    """A causal language model whose head is its embedding."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight"))
                deviation = 0.02 / (2 * shape.layers) ** 0.5 if into_residual else 0.02
                nn.init.normal_(parameter, std=deviation, generator=generator)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normed hidden states (B, T, hidden) of ``ids`` (B, T)."""
        cos, sin = (table.to(ids.device) for table in rotary_tables(self.shape, ids.shape[1]))
        states: Tensor = self.model(ids, cos, sin)
        return states

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of normed hidden states."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, vocab) of ``ids`` (B, T)."""
        return self.head(self.hidden(ids))

    def mixtures(self) -> list[Mixture]:
        """The layers of experts, from the first; none of a dense model."""
        return [module for module in self.modules() if isinstance(module, Mixture)]

    def parameter_count(self) -> int:
        """Number of parameters, the tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
