"""Multi-head latent attention."""

from __future__ import annotations

from ockham.core.seams import Linear
from ockham.kernels.ops import (
    Attend,
    AttentionOutput,
    LatentInput,
    Norm,
)
from ockham.model.program.compiling.tensors import Compiling
from ockham.model.program.latent import LatentSizes
from ockham.model.program.weights import Part


def latent(compiling: Compiling, layer: int, sizes: LatentSizes) -> None:
    d, record, prefix = compiling.d, compiling.record.latent, compiling.layer(layer)
    assert record is not None
    group, each = d.group_of(layer), sizes.rotated + sizes.plain
    pairs = (sizes.rotated, sizes.rotated) if sizes.neighbours else None
    down, kept = f"{prefix}{record.down}.weight", (sizes.rank + sizes.rotated, d.hidden_size)
    of_keys = [
        Part(down, kept, sizes.rank, kept[0], pairs),
        Part(down, kept, 0, sizes.rank),
    ]

    def queries(name: str, width: int) -> list[Part]:
        whole = f"{prefix}{name}.weight", (d.heads * each, width)
        firsts = [head * each for head in range(d.heads)]
        return [
            part
            for first in firsts
            for part in (
                Part(*whole, first + sizes.plain, first + each, pairs),
                Part(*whole, first, first + sizes.plain),
            )
        ]

    rank, up, query_norm = sizes.query_rank, None, None
    if rank:
        name = f"{prefix}{record.query_down}.weight"
        first = [Part(name, (rank, d.hidden_size), 0, rank)]
        up = compiling.weights.linear(queries(record.query_up, rank), "qkv")
        query_norm = _latent_norm(compiling, prefix + record.query_norm, rank, sizes)
    else:
        first = queries(record.query, d.hidden_size)
    keys, values = _heads_of_latent(compiling, prefix, sizes)
    compiling.ops.append(
        LatentInput(
            layer,
            group,
            d.heads,
            d.head_dim,
            inputs=compiling.weights.linear([*first, *of_keys], "qkv"),
            keys=keys,
            latent_norm=_latent_norm(compiling, prefix + record.norm, sizes.rank, sizes),
            norm=compiling.norm(prefix, compiling.record.attention_norm),
            query_norm=query_norm,
            query_up=up,
            rope=compiling.rope(layer),
        )
    )
    compiling.mark(f"layer.{layer}.pattern")
    compiling.ops.append(
        Attend(
            layer,
            group,
            d.heads,
            1,
            d.head_dim,
            d.attention_scale,
            d.attention_softcap,
            window=d.windows[layer],
        )
    )
    output, width = compiling.record.attention_output, d.heads * sizes.value
    compiling.adaptable(layer, "out", prefix, (output,), (d.hidden_size,), width)
    compiling.ops.append(
        AttentionOutput(
            layer,
            out=compiling.matrix(prefix + output, d.hidden_size, width, "attention_output"),
            residual_scale=d.residual_scale,
            values=values,
        )
    )


def _latent_norm(compiling: Compiling, name: str, width: int, sizes: LatentSizes) -> Norm:
    return Norm(compiling.weights.vector([(f"{name}.weight", (width,))]), sizes.norm_eps)


def _heads_of_latent(
    compiling: Compiling, prefix: str, sizes: LatentSizes
) -> tuple[list[Linear], list[Linear]]:
    """Of each head the matrix that takes its queries to the latent, and the one that takes the
    latent to its values."""
    heads, record = compiling.d.heads, compiling.record.latent
    assert record is not None
    name = f"{prefix}{record.up}.weight"
    if compiling.weights.has(name):
        both = sizes.plain + sizes.value
        shape = (heads * both, sizes.rank)
        starts = [head * both for head in range(heads)]
        keys = [Part(name, shape, at, at + sizes.plain, turned=True) for at in starts]
        values = [Part(name, shape, at + sizes.plain, at + both) for at in starts]
    else:
        shapes = (heads, sizes.rank, sizes.plain), (heads, sizes.value, sizes.rank)
        keys, values = (
            [
                Part(f"{prefix}{own}.weight", shape, head * shape[1], (head + 1) * shape[1])
                for head in range(heads)
            ]
            for own, shape in zip((record.key_up, record.value_up), shapes, strict=True)
        )
    return (
        [compiling.weights.linear([part], "qkv") for part in keys],
        [compiling.weights.linear([part], "qkv") for part in values],
    )
