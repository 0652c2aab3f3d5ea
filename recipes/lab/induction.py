"""A start that can copy: the trained model made wider, with two layers below it that look back.

An induction circuit continues a text as it went on the last time that the same tokens stood before
(Olsson et al., "In-context Learning and Induction Heads", 2022, arXiv:2209.11895). Small models
learn it late; here its weights are written down, and training starts from them (compare Trockman
and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023, arXiv:2305.09828).

The old model computes what it did: its weights stand in the first dimensions of wider ones. The
new dimensions of the residual stream hold a constant, a code of the token, and, written by the
first new layer, the codes of the four tokens before it. The second new layer compares the last four
tokens with the four that stand before each place, and writes the code of the token at the best
place, from where the head, which is tied to the embedding, reads it. Half of each attention head's
dimensions rotate as the old ones did; the other half rotate so slowly that they see no position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recipes.lab.model import LabModel, Shape
from recipes.lab.tokenizer import SPECIAL_TOKENS

Weights = dict[str, Tensor]

OLD = Shape()
WIDE = replace(OLD, hidden=384, layers=OLD.layers + 2, head_dim=128, rope_theta=OLD.rope_theta**2)

_SLOTS = 4
_SHORT = 16
"""Dimensions of the code that is compared: the first of the token's whole code."""
_CONSTANT = OLD.hidden
_CODE = slice(OLD.hidden + 1, WIDE.hidden - _SLOTS * _SHORT)
_CODE_WIDTH = _CODE.stop - _CODE.start
_UNROTATED = OLD.head_dim // 2


@dataclass(frozen=True)
class Circuit:
    """The strengths of the circuit, in nats of attention or of the head."""

    share: float = 0.2
    """Norm of a code, as a share of the token's embedding."""
    previous: float = 12.0
    """By how much a head that looks back prefers its distance to the next one."""
    match: float = 12.0
    """What each equal token adds to a place."""
    threshold: float = 33.0
    """What a place needs, or the head looks at itself, where it writes nothing."""
    copying: float = 6.0
    """What the head adds to the token that is copied."""
    final_norm: float = 8.54
    """The old model's median root mean square before its last norm, on held-out code."""


def widen(old: Weights, seed: int, circuit: Circuit | None = None) -> Weights:
    """The weights of the wide model."""
    circuit = circuit or Circuit()
    model = LabModel(WIDE, seed)
    new = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    for name, weight in old.items():
        _place(new, name, weight.float())
    embedding = new["model.embed_tokens.weight"]
    scale = circuit.share * embedding.norm(dim=1, keepdim=True)
    embedding[:, _CONSTANT] = scale[:, 0]
    embedding[:, _CODE] = scale * _codes(OLD.vocab_size, seed)
    embedding[: len(SPECIAL_TOKENS), _CODE] = 0.0  # the ends of turns and texts are not copied
    for layer in (0, 1):
        for part in ("gate_proj", "up_proj"):  # the MLPs write nothing before they are trained
            name = f"model.layers.{layer}.mlp.{part}.weight"
            new[name] = model.state_dict()[name].clone()
        for part in ("input_layernorm", "post_attention_layernorm"):
            new[f"model.layers.{layer}.{part}.weight"].fill_(1.0)
    norm = float(embedding[:, : OLD.hidden].norm(dim=1).median())
    _look_back(new, circuit, norm)
    _copy(new, circuit, norm)
    return new


def _place(new: Weights, name: str, weight: Tensor) -> None:
    """Put one weight of the old model where the wide one computes the same with it."""
    parts = name.split(".")
    if "layers" in parts:
        parts[2] = str(int(parts[2]) + WIDE.layers - OLD.layers)
    target = new[".".join(parts)]
    if weight.ndim == 1:  # the root mean square is over more dimensions, which are nearly 0
        weight = weight * math.sqrt(OLD.hidden / WIDE.hidden)
    elif parts[-2] in ("q_proj", "k_proj", "v_proj"):
        weight = _spread(weight)
        if parts[-2] == "q_proj":  # attention divides by the root of the head's width
            weight = weight * math.sqrt(WIDE.head_dim / OLD.head_dim)
    elif parts[-2] == "o_proj":
        weight = _spread(weight.T).T
    target[tuple(slice(size) for size in weight.shape)] = weight


def _spread(weight: Tensor) -> Tensor:
    """Rows of heads of 64 to rows of heads of 128: each half in the first half of the new one's."""
    heads = weight.view(-1, 2, OLD.head_dim // 2, weight.shape[1])
    wide = weight.new_zeros(heads.shape[0], 2, WIDE.head_dim // 2, weight.shape[1])
    wide[:, :, : OLD.head_dim // 2] = heads
    return wide.flatten(0, 2)


def _codes(tokens: int, seed: int) -> Tensor:
    """Unit vectors (tokens, code width), whose first dimensions are as long in each of them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.nn.functional.normalize(torch.randn(tokens, width, generator=generator))
        for width in (_SHORT, _CODE_WIDTH - _SHORT)
    ]
    return torch.cat((parts[0] * math.sqrt(1 / 3), parts[1] * math.sqrt(2 / 3)), dim=1)


def _slot(number: int) -> slice:
    """Where the code of the token ``number`` + 1 places before stands."""
    return slice(_CODE.stop + number * _SHORT, _CODE.stop + (number + 1) * _SHORT)


def _aim(q: Tensor, offset: int, pairs: int, strength: float) -> None:
    """Let a query head (128, hidden) look ``offset`` tokens back, by its fastest pairs."""
    speeds = WIDE.rope_theta ** (-torch.arange(pairs) * 2 / WIDE.head_dim)
    half = WIDE.head_dim // 2
    q[:pairs, _CONSTANT] = strength * torch.cos(offset * speeds)
    q[half : half + pairs, _CONSTANT] = -strength * torch.sin(offset * speeds)


def _heads(weights: Weights, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of q, k, v (heads, 128, hidden), and of o (heads, hidden, 128)."""
    q, k, v, o = (weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkvo")
    width = WIDE.head_dim
    return (
        q.view(-1, width, WIDE.hidden),
        k.view(-1, width, WIDE.hidden),
        v.view(-1, width, WIDE.hidden),
        o.view(WIDE.hidden, -1, width).permute(1, 0, 2),
    )


def _look_back(weights: Weights, circuit: Circuit, norm: float) -> None:
    """The first layer: head n writes the short code of the token n + 1 places before."""
    q, k, v, o = _heads(weights, 0)
    unit = circuit.share * math.sqrt(WIDE.hidden)  # a code, after the norm
    pairs = 12
    strength = math.sqrt(circuit.previous * math.sqrt(WIDE.head_dim)) / unit
    for head in range(2):
        k[head, :pairs, _CONSTANT] = strength
        v[head, :_SHORT, _CODE.start : _CODE.start + _SHORT] = (
            torch.eye(_SHORT) * math.sqrt(3) / unit
        )
    for head in range(_SLOTS):
        _aim(q[head], head + 1, pairs, strength)
        o[head, _slot(head), :_SHORT] = torch.eye(_SHORT) * circuit.share * norm


def _copy(weights: Weights, circuit: Circuit, norm: float) -> None:
    """The second layer: head 0 finds the place and adds its token's code; head 1 subtracts the
    present token's, which head 0 finds where there is no such place."""
    q, k, v, o = _heads(weights, 1)
    unit = circuit.share * math.sqrt(WIDE.hidden)
    root = math.sqrt(WIDE.head_dim)
    strength = math.sqrt(circuit.match * root) / unit
    half = WIDE.head_dim // 2
    for number in range(_SLOTS):
        start = _UNROTATED + (number % 2) * _SHORT + (number // 2) * half
        rows = slice(start, start + _SHORT)
        k[0, rows, _slot(number)] = torch.eye(_SHORT) * strength
        if number == 0:
            short = slice(_CODE.start, _CODE.start + _SHORT)
            q[0, rows, short] = torch.eye(_SHORT) * strength * math.sqrt(3)
        else:
            q[0, rows, _slot(number - 1)] = torch.eye(_SHORT) * strength
    # Its own place has its own code, and no rotation against itself: any other place has one.
    rotated = torch.cat((torch.arange(_UNROTATED), half + torch.arange(_UNROTATED)))[:_CODE_WIDTH]
    here = math.sqrt(circuit.threshold * root) / unit
    k[0, rotated, _CODE] = torch.eye(_CODE_WIDTH) * here
    q[0, rotated, _CODE] = torch.eye(_CODE_WIDTH) * here
    q[1, rotated, _CODE] = torch.eye(_CODE_WIDTH) * here * 4
    v[0, :_CODE_WIDTH, _CODE] = torch.eye(_CODE_WIDTH) / unit
    written = 2 * circuit.share * norm
    o[0, _CODE, :_CODE_WIDTH] = torch.eye(_CODE_WIDTH) * written
    o[1, _CODE, :_CODE_WIDTH] = -torch.eye(_CODE_WIDTH) * (written + circuit.share * norm)
    root_mean_square = circuit.final_norm * math.sqrt(OLD.hidden / WIDE.hidden)
    weights["model.norm.weight"][_CODE] = (
        circuit.copying * root_mean_square / (circuit.share * norm * written)
    )
