"""Mixtures of experts."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.kernels.ops import (
    Experts,
    Norm,
    Route,
)
from ockham.model.program.compiling.tensors import Compiling
from ockham.model.program.experts import ExpertSizes
from ockham.model.program.record import ExpertRecord


def _beside(prefix: str, block: str, name: str) -> str:
    """A name in a block of experts, or from the layer on where it begins with a dot."""
    return prefix + name[1:] if name.startswith(".") else block + name


def mixture(compiling: Compiling, layer: int, sizes: ExpertSizes) -> None:
    d, record, prefix = compiling.d, compiling.record, compiling.layer(layer)
    assert record.experts is not None
    experts = record.experts
    names = [f"{prefix}{block}{experts.router}.weight" for block in experts.blocks]
    router = compiling.choose(names).removesuffix(".weight")
    block = router.removesuffix(experts.router)
    compiling.mark(f"layer.{layer}.router")
    compiling.ops.append(
        Route(
            layer,
            router=compiling.matrix(router, sizes.count, d.hidden_size, "router"),
            top_k=sizes.per_token,
            normalise=sizes.normalise,
            norm=(
                compiling.norm(prefix, record.mlp_norm)
                if experts.router_scale is None
                else _router_norm(compiling, prefix + experts.router_scale)
            ),
            correction=_correction(compiling, block, sizes.count) if sizes.corrected else None,
            bias=compiling.bias(router, sizes.count) if sizes.bias else None,
            sigmoid=sizes.sigmoid,
            scale=sizes.scale,
            expert_scales=(
                None
                if experts.expert_scales is None
                else compiling.weights.vector([(prefix + experts.expert_scales, (sizes.count,))])
            ),
            groups=sizes.groups,
            kept_groups=sizes.kept_groups,
            group_best=sizes.group_best,
        )
    )
    compiling.mark(f"layer.{layer}.experts")
    all_widths = sizes.widths or ((sizes.intermediate_size,) * sizes.count,) * d.layers
    own_widths = all_widths[sizes.layers.index(layer)]
    gate_up, down = _expert_matrices(compiling, block, own_widths)
    gate_up_bias, down_bias = (
        _expert_biases(compiling, block, own_widths) if sizes.bias else (None, None)
    )
    gated = sizes.shared and experts.shared_gate is not None
    compiling.ops.append(
        Experts(
            layer,
            top_k=sizes.per_token,
            gate_up=gate_up,
            down=down,
            activation=d.activation,
            shared_gate_up=_shared_gate_up(compiling, prefix, block, experts, sizes.shared),
            shared_down=(
                compiling.matrix(
                    _beside(prefix, block, experts.shared_down),
                    d.hidden_size,
                    sizes.shared,
                    "down",
                )
                if sizes.shared
                else None
            ),
            shared_gate=(
                compiling.matrix(f"{block}{experts.shared_gate}", 1, d.hidden_size, "router")
                if gated
                else None
            ),
            post_norm=compiling.norm(prefix, record.mlp_post_norm),
            residual_scale=d.residual_scale,
            shortcut=compiling.shortcut(router),
            gate_up_bias=gate_up_bias,
            down_bias=down_bias,
            norm=compiling.norm(prefix, experts.norm),
            routed_norm=compiling.norm(prefix, experts.routed_norm),
            shared_norm=compiling.norm(prefix, experts.shared_norm) if sizes.shared else None,
            shared_post_norm=(
                compiling.norm(prefix, experts.shared_post_norm) if sizes.shared else None
            ),
            gated=experts.gate is not None,
        )
    )


def _router_norm(compiling: Compiling, scale: str) -> Norm:
    size = compiling.d.hidden_size
    weight: Floats = compiling.weights.vector([(scale, (size,))]) * np.float32(size**-0.5)
    return Norm(weight, compiling.d.norm_eps)


def _correction(compiling: Compiling, block: str, count: int) -> Floats:
    """What is added where experts are chosen: stored as a vector, or as a matrix of one row."""
    experts = compiling.record.experts
    assert experts is not None
    assert experts.correction is not None, "so it was described"
    return compiling.weights.vector([(block + experts.correction, (count,))])


def _shared_gate_up(
    compiling: Compiling, prefix: str, block: str, experts: ExpertRecord, width: int
) -> Linear | None:
    if not width:
        return None
    names = tuple(_beside(prefix, block, name) for name in experts.shared_gate_up)
    widths = (width,) * (1 if experts.gate is None else 2)
    return compiling.packed("", names, widths, compiling.d.hidden_size, "gate_up")


def _expert_matrices(
    compiling: Compiling, block: str, widths: tuple[int, ...]
) -> tuple[list[Linear], list[Linear]]:
    """Every expert's gate and up, and down projection, stored one by one, or where their widths
    are equal stacked."""
    names, hidden, count = compiling.record.experts, compiling.d.hidden_size, len(widths)
    assert names is not None
    if not names.transposed and compiling.weights.has(block + names.stacked[0]):
        (gates, downs), inner = names.stacked, widths[0]
        rows = inner * (1 if names.gate is None else 2)
        both = compiling.stack(block + gates, count, rows, hidden, "gate_up")
        return both, compiling.stack(block + downs, count, hidden, inner, "down")
    experts = [(f"{block}experts.{n}.", inner) for n, inner in enumerate(widths)]
    gate_up = [
        compiling.packed(expert, names.gate_up, (inner,) * len(names.gate_up), hidden, "gate_up")
        for expert, inner in experts
    ]
    down = [
        compiling.matrix(expert + names.down, hidden, inner, "down") for expert, inner in experts
    ]
    return gate_up, down


def _expert_biases(
    compiling: Compiling, block: str, widths: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Of all experts, one after another: of gates and ups, and of what comes down."""
    names, hidden = compiling.record.experts, compiling.d.hidden_size
    assert names is not None
    experts = [(f"{block}experts.{n}.", inner) for n, inner in enumerate(widths)]
    gates = [
        (f"{expert}{name}.bias", (inner,)) for expert, inner in experts for name in names.gate_up
    ]
    downs = [(f"{expert}{names.down}.bias", (hidden,)) for expert, _ in experts]
    return compiling.weights.vector(gates), compiling.weights.vector(downs)
