"""What a run starts from: the weights of a dense model, in the shape of the one to be trained.

The same shape takes them over. A mixture of experts gets each MLP in parts and computes the same
function; a narrower model gets the embedding, projected; an adapter learns beside them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.lab.lora import is_adapter
from recipes.lab.model import LabModel, Mixture, Shape

Weights = dict[str, Tensor]

_CAUTIOUS = 0.2
"""The last norm of a model that has only its embedding: with 1 it would be sure of every token."""
_EXPERT_PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def read_start(sha256: str, path: Path | None) -> Weights:
    """The weights of a safetensors file, in float32. Raises ValueError for any other file than the
    one of this digest."""
    if path is None:
        raise ValueError("The plan starts from weights: name their file with --start.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, but the plan starts from {sha256}.")
    return {name: weight.float() for name, weight in load_file(path).items()}


def load_dense(path: Path, shape: Shape) -> LabModel:
    """The dense model whose weights stand in a safetensors file."""
    model = LabModel(shape)
    model.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return model


def begin(model: LabModel, dense: Weights, sample: Tensor) -> None:
    """Give the model its first weights, made from those of a dense one.

    ``sample`` (1, T) are token ids of the training text, which the gates of experts are centred on.
    """
    if model.shape.experts:
        gates = {n: w for n, w in model.state_dict().items() if n.endswith("gate.weight")}
        model.load_state_dict(split_into_experts(dense, model.shape, gates))
        centre_gates(model, sample)
    elif model.shape.passes > 1:
        model.load_state_dict(share_layers(dense, model.shape), strict=False)
    elif model.shape.hidden < dense["model.norm.weight"].shape[0]:
        embedding = narrowed(dense["model.embed_tokens.weight"], model.shape.hidden)
        norm = torch.full_like(model.model.norm.weight, _CAUTIOUS)
        start = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm}
        model.load_state_dict(start, strict=False)
    else:
        own = {n: w for n, w in model.state_dict().items() if is_adapter(n)}
        model.load_state_dict({**dense, **own})


def share_layers(dense: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The first weights of a recursive model: the first and the last layer of the dense one, and
    for each shared layer the mean of those in whose places it runs."""
    deep = 1 + max(int(name.split(".")[2]) for name in dense if ".layers." in name)
    block = shape.layers - 2
    found = {name: weight for name, weight in dense.items() if ".layers." not in name}
    sources = {0: [0], shape.layers - 1: [deep - 1]}
    for layer in range(block):
        sources[1 + layer] = list(range(1 + layer, deep - 1, block))
    for layer, others in sources.items():
        for name in [name for name in dense if f".layers.{others[0]}." in name]:
            part = name.split(".", 3)[3]
            same = [dense[f"model.layers.{other}.{part}"] for other in others]
            found[f"model.layers.{layer}.{part}"] = torch.stack(same).mean(0)
    return found


def split_into_experts(dense: Weights, shape: Shape, gates: Weights) -> Weights:
    """The weights of a mixture that computes what the dense model computes.

    Each MLP is cut into as many parts as a token has experts (2: A and B), whose outputs add up to
    its own. The first half of the experts are copies of A, the second of B, and expert i of both
    halves has the same row of ``gates``: their gates are tied and always the largest together, so
    that each has the weight 1/2, for which the parts' last matrices are doubled.
    """
    parts = shape.experts_per_token
    copies = shape.experts // parts
    weights = {name: weight for name, weight in dense.items() if ".mlp." not in name}
    for name, weight in dense.items():
        before, is_mlp, projection = name.partition(".mlp.")
        if not is_mlp:
            continue
        part = _EXPERT_PARTS[projection.removesuffix(".weight")]
        halves = weight.chunk(parts, dim=1 if part == "w2" else 0)
        for expert in range(shape.experts):
            half = halves[expert // copies] * (parts if part == "w2" else 1)
            weights[f"{before}.block_sparse_moe.experts.{expert}.{part}.weight"] = half.clone()
    for name, gate in gates.items():
        weights[name] = gate[:copies].repeat(parts, 1)
    return weights


@torch.no_grad()
def centre_gates(model: LabModel, sample: Tensor) -> None:
    """Take from every gate the direction that all tokens share, else most of them would go to the
    same experts, and scale them to logits of deviation 1. Tied gates stay tied."""

    def centre(mixture: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(mixture, Mixture)
        rows = inputs[0].flatten(0, -2)
        gate = mixture.gate.weight[: model.shape.experts // mixture.per_token]
        mean = rows.mean(0)
        gate = gate - (gate @ mean)[:, None] * mean / mean.square().sum()
        gate = gate / (rows @ gate.T).std(0)[:, None]
        mixture.gate.weight.copy_(gate.repeat(mixture.per_token, 1))

    hooks = [mixture.register_forward_pre_hook(centre) for mixture in model.mixtures()]
    model.hidden(sample)
    for hook in hooks:
        hook.remove()


def narrowed(embedding: Tensor, width: int) -> Tensor:
    """Rows of an embedding (V, D) in the ``width`` directions in which they vary the most (V,
    width): what is left of the products of rows is the most that so few can keep."""
    _, _, directions = torch.linalg.svd(embedding, full_matrices=False)
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return embedding @ (directions * signs)[:width].T
