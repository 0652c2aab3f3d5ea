"""Any decoder that Ockham runs, in PyTorch: built from its compiled program, so that what
transforms made (shortcuts, unequal widths) is trained as anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.seams import Linear
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Embed,
    Experts,
    FeedForward,
    Head,
    LatentInput,
    Norm,
    Operation,
    Recurse,
    Rope,
    Route,
)
from ockham.model.program.compile import compile_program
from ockham.model.program.weights import halves
from ockham.model.rewriting.anatomy import NamedMatrix, Names
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.student import Learner, divergence
from ockham.training.target import fast
from ockham.weights.widths import width_of


class Decoder(nn.Module):
    """A model whose parameters are the tensors of its checkpoint, in fp32."""

    def __init__(self, model: RewrittenModel) -> None:
        """Raises ConfigError for operations that are not computed here: activations but SiLU, norms
        behind branches, soft caps, sinks, biases of experts, dual chunk attention."""
        super().__init__()
        read = {name: values() for name, _, values in model.tensors()}
        self.shapes = {name: tuple(shape) for name, shape, _ in model.tensors()}
        self._places = {name: place for place, name in enumerate(read)}
        self._ends = (model.table, model.head)
        self.tensors = nn.ParameterList(
            nn.Parameter(torch.from_numpy(values.reshape(self.shapes[name])))
            for name, values in read.items()
        )
        description = model.description
        self._names = Names(model.source("float32").has)
        program = compile_program(description, self._names, description.max_position_embeddings)
        self._ops: Sequence[Operation] = program.ops
        self._routed = any(isinstance(op, Experts) for op in self._ops)
        for op in self._ops:
            _check(op)

    def values(self) -> dict[str, Floats]:
        """The tensors as they are now, by the names of the checkpoint."""
        return {name: self.tensors[place].detach().numpy() for name, place in self._places.items()}

    def matrices(self) -> list[Tensor]:
        """The matrices of the layers, each (N, K): neither the table of embeddings nor the head."""
        return [
            self.tensors[place]
            for name, place in self._places.items()
            if len(self.shapes[name]) == 2 and name not in self._ends
        ]

    def feed_forwards(self) -> list[FeedForward]:
        """Those of the layers, in order."""
        return [op for op in self._ops if isinstance(op, FeedForward)]

    def leading(self, op: FeedForward, h: Tensor, width: int) -> Tensor:
        """What the first neurons of a feed-forward give for its normed input."""
        narrow = _Narrow(width / op.neurons, 1)
        branch = self._inner(h, op.gate_up, op.down, narrow, op.gate_up_bias)
        bias = self._vector(op.down_bias)
        return branch if bias is None else branch + bias

    def forward(
        self,
        ids: Tensor,
        keep: float = 1.0,
        multiple: int = 1,
        inner: Callable[[FeedForward, Tensor, Tensor], Tensor] | None = None,
        head: bool = True,
    ) -> Tensor:
        """Logits (B, T, V) of token ids (B, T), or without `head` the hidden states before it. Of
        each feed-forward, or of each routed expert where there are some, the first channels
        compute, the share `keep` of them in steps of `multiple` (`width_of`). `inner` takes the
        place of feed-forwards: of one, of the residual stream before it, and of that normed, it
        gives what is added to the stream."""
        x, narrow = torch.empty(0), _Narrow(keep, multiple)
        plain = _Narrow(1.0, 1) if self._routed else narrow
        state: dict[str, Any] = {}
        for op in self._ops:
            if isinstance(op, Embed):
                x = F.embedding(ids, self._matrix(op.table)) * op.scale
            elif isinstance(op, AttentionInput):
                state["qkv"] = self._qkv(op, x)
            elif isinstance(op, Attend):
                state["mixed"] = _attend(op, *state["qkv"])
            elif isinstance(op, AttentionOutput):
                branch = F.linear(state["mixed"], self._matrix(op.out), self._vector(op.bias))
                x = self._base(x, op.shortcut) + op.residual_scale * branch
            elif isinstance(op, FeedForward):
                h = self._norm(x, op.norm)
                if inner is None:
                    branch = self._inner(h, op.gate_up, op.down, plain, op.gate_up_bias)
                    bias = self._vector(op.down_bias)
                    branch = branch if bias is None else branch + bias
                else:
                    branch = inner(op, x, h)
                x = self._base(x, op.shortcut) + op.residual_scale * branch
            elif isinstance(op, Route):
                state["h"] = self._norm(x, op.norm)
                state["routed"] = self._route(op, state["h"])
            elif isinstance(op, Experts):
                branch = self._experts(op, narrow, state["h"], *state["routed"])
                x = self._base(x, op.shortcut) + op.residual_scale * branch
            elif isinstance(op, Head) and head:
                x = F.linear(self._norm(x, op.norm), self._matrix(op.out)) * op.scale
            elif isinstance(op, Head):
                x = self._norm(x, op.norm)
        return x

    def has(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        return name in self._places

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is learned, under its name in the checkpoint."""
        found: Tensor = self.tensors[self._places[name]]
        return found

    def _matrix(self, linear: Linear | None) -> Tensor:
        """The weights (N, K) that a product has."""
        assert isinstance(linear, NamedMatrix)
        parts = [
            self.tensor(part.name).reshape(-1, part.shape[-1])[part.start : part.stop]
            for part in linear.parts
        ]
        parts = [
            rows if part.pairs is None else rows[torch.from_numpy(halves(len(rows), part.pairs))]
            for rows, part in zip(parts, linear.parts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _vector(self, values: Floats | None) -> Tensor | None:
        names = self._names.of(values)
        return torch.cat([self.tensor(name) for name in names]) if names else None

    def _norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is None:
            return x
        (name,) = self._names.of(norm.weight)
        offset = 1.0 if name in self._names.offset else 0.0
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        return x * scale * (self.tensor(name) + offset)

    def _base(self, x: Tensor, shortcut: Linear | None) -> Tensor:
        return x if shortcut is None else F.linear(x, self._matrix(shortcut))

    def _qkv(self, op: AttentionInput, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, heads, T, E) each, rotated."""
        raw = F.linear(self._norm(x, op.norm), self._matrix(op.qkv), self._vector(op.bias))
        sizes = [op.heads * op.head_dim, op.kv_heads * op.head_dim, op.kv_heads * op.head_dim]
        q, k, v = torch.split(raw, sizes, dim=-1)
        if op.norm_whole:
            q, k = self._norm(q, op.q_norm), self._norm(k, op.k_norm)
        q, k, v = (each.reshape(*each.shape[:-1], -1, op.head_dim) for each in (q, k, v))
        if not op.norm_whole:
            q, k = self._norm(q, op.q_norm), self._norm(k, op.k_norm)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        if op.rope is not None:
            q, k = _rotated(q, op.rope), _rotated(k, op.rope)
        return q, k, v

    def _route(self, op: Route, h: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = F.linear(h, self._matrix(op.router)).softmax(-1)
        weights, chosen = probabilities.topk(op.top_k)
        return chosen, weights / weights.sum(-1, keepdim=True) if op.normalise else weights

    def _inner(
        self, h: Tensor, gate_up: Linear, down: Linear, narrow: _Narrow, bias: Floats | None = None
    ) -> Tensor:
        """down(silu(gate(h)) * up(h)) over the first channels."""
        read, write, added = self._matrix(gate_up), self._matrix(down), self._vector(bias)
        whole = write.shape[1]
        width = width_of(whole, narrow.keep, narrow.multiple)
        if width < whole:
            read, write = _first(read, width), write[:, :width]
            added = None if added is None else _first(added, width)
        return F.linear(_gated(F.linear(h, read, added)), write)

    def _experts(
        self, op: Experts, narrow: _Narrow, h: Tensor, chosen: Tensor, weights: Tensor
    ) -> Tensor:
        branch = torch.zeros_like(h)
        for number, (gate_up, down) in enumerate(zip(op.gate_up, op.down, strict=True)):
            weight = (weights * (chosen == number)).sum(-1, keepdim=True)
            rows = weight.squeeze(-1) > 0
            own = torch.zeros_like(h)
            found = self._inner(h[rows], gate_up, down, narrow) * weight[rows]
            own[rows] = found.to(own.dtype)
            branch = branch + own
        if op.shared_gate_up is not None and op.shared_down is not None:
            shared = self._inner(h, op.shared_gate_up, op.shared_down, _Narrow(1.0, 1))
            if op.shared_gate is not None:
                shared = shared * F.linear(h, self._matrix(op.shared_gate)).sigmoid()
            branch = branch + shared
        return branch


class Healed(Learner):
    """A model that learns the distributions of another one, at all positions and over all weights
    (Hinton et al. 2015, arXiv:1503.02531)."""

    rate = 1e-4
    text_share = 1.0

    def __init__(self, learned: Decoder, teacher: Decoder) -> None:
        super().__init__()
        self.learned = learned
        self._teacher = [teacher.requires_grad_(False)]  # in a list, as it is no part of the state

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        return self._loss(ids[:, :-1])

    @torch.no_grad()
    def divergence(self, ids: Tensor) -> float:
        """The mean KL(teacher || learned) of rows of token ids (B, T + 1), in nats."""
        return sum(self._loss(row[None, :-1]).item() for row in ids) / len(ids)

    def _loss(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self._teacher[0](ids)
        return divergence(expected, self.learned(ids))


class Nested(Learner):
    """A model of which the first channels of the feed-forwards are a smaller model: both learn the
    distributions of the original, and the text (MatFormer, Devvrit et al. 2023, arXiv:2310.07707;
    with Once-for-All's distillation, arXiv:1908.09791, section 3.3).

    A step reads its rows at full width and at one of `widths`, drawn anew; `data_weight` is that of
    the text's negative log-likelihood beside KL(original || width)."""

    rate = 1e-3
    text_share = 1.0

    def __init__(
        self,
        learned: Decoder,
        teacher: Decoder,
        widths: Sequence[float],
        multiple: int,
        data_weight: float,
    ) -> None:
        super().__init__()
        self.learned = learned
        self._teacher = [teacher.requires_grad_(False)]  # in a list, as it is no part of the state
        self._widths, self._multiple, self._data_weight = tuple(widths), multiple, data_weight

    def loss(self, ids: Tensor, rng: np.random.Generator, source: str) -> Tensor:
        inputs, said = ids[:, :-1], ids[:, 1:].flatten()
        width = self._widths[int(rng.integers(len(self._widths)))]
        total = torch.zeros(())
        with fast():
            with torch.no_grad():
                expected = self._teacher[0](inputs)
            for keep in (1.0, width):
                logits = self.learned(inputs, keep, self._multiple)
                text = F.cross_entropy(logits.flatten(0, 1).float(), said)
                total = total + divergence(expected, logits) + self._data_weight * text
        return total / 2

    def optimisers(self, rate: float) -> dict[str, torch.optim.Optimizer]:
        """Muon for the layers' matrices, at four times the rate of AdamW for the rest."""
        matrices = self.learned.matrices()
        own = {id(each) for each in matrices}
        others = [each for each in self.learned.parameters() if id(each) not in own]
        return {
            "matrices": torch.optim.Muon(matrices, lr=4 * rate, weight_decay=0.0, momentum=0.95),
            "others": torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        }

    @torch.no_grad()
    def divergence(self, ids: Tensor, keep: float) -> float:
        """The mean KL(original || width) of rows of token ids (B, T + 1), in nats."""
        found = 0.0
        for row in ids:
            expected = self._teacher[0](row[None, :-1])
            logits = self.learned(row[None, :-1], keep, self._multiple)
            found += divergence(expected, logits).item()
        return found / len(ids)


@dataclass(frozen=True, slots=True)
class _Narrow:
    """How many of a feed-forward's channels compute."""

    keep: float
    multiple: int


def _first(gate_up: Tensor, width: int) -> Tensor:
    """The rows of gate and up (2 I, ...) of the first channels: (2 width, ...)."""
    gate, up = gate_up.chunk(2)
    return torch.cat((gate[:width], up[:width]))


def _check(op: Operation) -> None:
    if getattr(op, "activation", "silu") != "silu" or not getattr(op, "gated", True):
        raise ConfigError("only models whose feed-forwards are gated by SiLU are trained so.")
    if isinstance(op, LatentInput):
        raise ConfigError("models with multi-head latent attention are not trained so.")
    if isinstance(op, Recurse):
        raise ConfigError("models that run layers several times are not trained so.")
    for field in ("post_norm", "stream_norm", "inner_norm", "softcap"):
        if getattr(op, field, None) is not None:
            raise ConfigError(f"models with a {field.replace('_', ' ')} are not trained so.")
    if getattr(op, "sinks", None) is not None:
        raise ConfigError("models whose attention has sinks are not trained so.")
    if isinstance(op, Experts) and (op.gate_up_bias is not None or op.down_bias is not None):
        raise ConfigError("models whose experts have biases are not trained so.")
    if isinstance(op, AttentionInput) and op.rope is not None and op.rope.dual_chunk is not None:
        raise ConfigError("models with dual chunk attention are not trained so.")
    if isinstance(op, AttentionInput) and op.changes_rotated_queries:
        raise ConfigError("models whose queries change after their rotation are not trained so.")
    if isinstance(op, Route) and op.correction is not None:
        raise ConfigError("models that correct the choice of experts are not trained so.")


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotated(heads: Tensor, rope: Rope) -> Tensor:
    half = len(rope.inverse_frequencies)
    positions = torch.arange(heads.shape[2], dtype=torch.float32)
    angles = torch.outer(positions, torch.from_numpy(rope.inverse_frequencies.copy()))
    cos, sin = angles.cos() * rope.scale, angles.sin() * rope.scale
    sizes = [half, half, heads.shape[-1] - 2 * half]
    first, second, rest = torch.split(heads, sizes, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _attend(op: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, T, heads * E)."""
    seen = None
    if op.window is not None:
        rows = torch.arange(q.shape[2])
        behind = rows[:, None] - rows
        seen = (behind >= 0) & (behind < op.window)
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=op.scale, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(2)
