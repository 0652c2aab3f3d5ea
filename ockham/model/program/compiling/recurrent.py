"""Layers that do not attend: short convolutions, gated delta rules, state spaces and gated linear
recurrences."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.kernels.ops import (
    GatedDelta,
    LinearAttention,
    LinearGru,
    Norm,
    ShortConvolution,
    StateSpace,
)
from ockham.model.program.compiling.tensors import Compiling
from ockham.model.program.recurrent import (
    DeltaSizes,
    GruSizes,
    LinearSizes,
    RecurrentLayers,
    StateSpaceSizes,
)
from ockham.model.program.weights import Part


def recurrent(compiling: Compiling, layer: int, sizes: RecurrentLayers, held: bool) -> None:
    """A layer with a state of each head, which reads the stream as it was `held`, or as it is."""
    if isinstance(sizes, StateSpaceSizes):
        _state_space(compiling, layer, sizes, held)
        return
    assert not held, "only state spaces stand beside others"
    if isinstance(sizes, DeltaSizes):
        _delta(compiling, layer, sizes)
    elif isinstance(sizes, LinearSizes):
        _linear(compiling, layer, sizes)
    else:
        _gru(compiling, layer, sizes)


def _linear(compiling: Compiling, layer: int, sizes: LinearSizes) -> None:
    d, record, prefix = compiling.d, compiling.record.linear, compiling.layer(layer)
    assert record is not None
    keys, values = sizes.heads * sizes.features, sizes.heads * sizes.value_dim
    widths, cells = (keys, keys, values), d.group_of(layer, rows=True)
    compiling.adaptable(layer, "inputs", prefix, record.inputs, widths, d.hidden_size)
    compiling.adaptable(layer, "out", prefix, (record.output,), (d.hidden_size,), values)
    compiling.ops.append(
        LinearAttention(
            layer,
            cells,
            cells + 1,
            sizes.heads,
            sizes.features,
            sizes.value_dim,
            inputs=compiling.packed(prefix, record.inputs, widths, d.hidden_size, "qkv"),
            out=compiling.matrix(prefix + record.output, d.hidden_size, values, "attention_output"),
            norm=compiling.norm(prefix, compiling.record.attention_norm),
            residual_scale=d.residual_scale,
        )
    )


def _state_space(compiling: Compiling, layer: int, sizes: StateSpaceSizes, held: bool) -> None:
    d, record, prefix = compiling.d, compiling.record.state_space, compiling.layer(layer)
    assert record is not None
    shape, heads = sizes.shape, sizes.value_heads
    values, keys, size = shape.values, shape.keys, d.hidden_size
    # Of what is stored in this order, first the queries, keys and values.
    stored = (values, values, keys, keys, heads)
    ends = np.cumsum(stored).tolist()
    order = [(ends[i] - stored[i], ends[i]) for i in (3, 2, 1, 0, 4)]
    rows = sum(stored)
    name, convolution = f"{prefix}{record.inputs}", f"{prefix}{record.weight}"
    parts = [Part(f"{name}.weight", (rows, size), *each) for each in order]
    mixed = np.concatenate([np.arange(*each) - values for each in order[:3]])
    weight = compiling.weights.vector(
        [(f"{convolution}.weight", (shape.channels, 1, sizes.length))]
    )
    weight = weight.reshape(shape.channels, -1)[mixed]
    gate, *parts_of_row, step = d.multipliers.space_parts
    if {*parts_of_row} != {1.0}:  # of channels, which are multiplied where they are convolved
        factors = np.repeat(parts_of_row, (values, keys, keys)).astype(np.float32)
        weight = weight * factors[mixed][:, None]
    inputs_bias = bias = None
    if sizes.biases:
        every = np.concatenate([np.arange(*each) for each in order])
        inputs_bias = compiling.bias(name, rows).reshape(rows, -1)[every].reshape(-1)
    if sizes.convolution_bias:
        bias = compiling.bias(convolution, shape.channels)
        bias = bias.reshape(shape.channels, -1)[mixed].reshape(-1)
    compiling.adaptable(layer, "outputs", prefix, (record.output,), (size,), values)
    decay = compiling.weights.vector([(prefix + record.decay, (heads,))])
    cells = d.group_of(layer, rows=True)
    compiling.ops.append(
        StateSpace(
            layer,
            cells,
            cells + 1,
            sizes.key_heads,
            heads,
            sizes.key_dim,
            sizes.value_dim,
            sizes.length,
            inputs=compiling.weights.linear(parts, "qkv"),
            weight=np.ascontiguousarray(weight.T).reshape(-1),
            decay=decay if sizes.negative else -np.exp(decay),
            step_bias=compiling.weights.vector([(prefix + record.step_bias, (heads,))]),
            skip=compiling.weights.vector([(prefix + record.skip, (heads,))]),
            outputs=compiling.matrix(prefix + record.output, size, values, "attention_output"),
            norm=compiling.norm(
                prefix, compiling.record.attention_norm, multiplier=d.multipliers.space_input
            ),
            group_norm=(
                Norm(
                    compiling.weights.vector([(f"{prefix}{record.norm}.weight", (values,))]),
                    d.norm_eps,
                )
                if sizes.normed
                else None
            ),
            norm_groups=sizes.key_heads,
            bias=bias,
            inputs_bias=inputs_bias,
            out_bias=compiling.bias(prefix + record.output, size) if sizes.output_biases else None,
            shortest_step=sizes.shortest_step,
            longest_step=sizes.longest_step,
            residual_scale=d.residual_scale * d.multipliers.space_output,
            norm_first=sizes.norm_first,
            gate_scale=gate,
            step_scale=step,
            held=held,
        )
    )


def _delta(compiling: Compiling, layer: int, sizes: DeltaSizes) -> None:
    d, record, prefix = compiling.d, compiling.record.delta, compiling.layer(layer)
    assert record is not None
    values, channels, heads = sizes.shape.values, sizes.shape.channels, sizes.value_heads
    widths = (channels, values, heads, heads)
    weight = compiling.weights.vector(
        [(f"{prefix}{record.weight}.weight", (channels, 1, sizes.length))]
    )
    cells = d.group_of(layer, rows=True)
    inputs = _delta_inputs(compiling, prefix, sizes)
    if not sizes.tiled:  # an adapter's value heads stand in the order of the original
        if not record.fused:  # whose rows of one kind do not stand together
            compiling.adaptable(layer, "inputs", prefix, record.inputs, widths, d.hidden_size)
        compiling.adaptable(layer, "out", prefix, (record.output,), (d.hidden_size,), values)
    decay = compiling.weights.vector([(prefix + record.decay, (heads,))])
    compiling.ops.append(
        GatedDelta(
            layer,
            cells,
            cells + 1,
            sizes.key_heads,
            heads,
            sizes.key_dim,
            sizes.value_dim,
            sizes.length,
            inputs=inputs,
            weight=np.ascontiguousarray(weight.reshape(channels, -1).T).reshape(-1),
            decay=decay if sizes.negative else -np.exp(decay),
            decay_bias=compiling.weights.vector([(prefix + record.decay_bias, (heads,))]),
            head_norm=Norm(
                compiling.weights.vector([(f"{prefix}{record.norm}.weight", (sizes.value_dim,))]),
                d.norm_eps,
            ),
            out=compiling.matrix(prefix + record.output, d.hidden_size, values, "attention_output"),
            norm=compiling.norm(prefix, compiling.record.attention_norm),
            residual_scale=d.residual_scale,
            tiled=sizes.tiled,
        )
    )


def _delta_inputs(compiling: Compiling, prefix: str, sizes: DeltaSizes) -> Linear:
    """The inputs of delta rules in the order of `GatedDelta`, from tensors of their own or from
    those that hold them key head by key head."""
    record, groups = compiling.record.delta, sizes.key_heads
    assert record is not None
    each = sizes.value_heads // groups
    wide = each * sizes.value_dim
    kinds = (2 * sizes.key_dim + wide, wide, each, each)  # of a key head
    parts: list[Part] = []
    for pair, both in enumerate(record.fused or ("", "")):
        names, own = record.inputs[2 * pair : 2 * pair + 2], kinds[2 * pair : 2 * pair + 2]
        if both and not compiling.weights.has(f"{prefix}{names[0]}.weight"):
            cuts = own if pair else (sizes.key_dim, sizes.key_dim, wide, wide)
            parts += _of_key_heads(compiling, f"{prefix}{both}.weight", cuts, groups)
            continue
        shapes = [(groups * rows, compiling.d.hidden_size) for rows in own]
        parts += [
            Part(f"{prefix}{name}.weight", shape, 0, shape[0])
            for name, shape in zip(names, shapes, strict=True)
        ]
    return compiling.weights.linear(parts, "qkv")


def _of_key_heads(
    compiling: Compiling, name: str, cuts: tuple[int, ...], groups: int
) -> list[Part]:
    """A tensor of rows of several kinds, key head by key head, kind by kind."""
    each = sum(cuts)
    shape = (groups * each, compiling.d.hidden_size)
    firsts = [
        (group * each + sum(cuts[:place]), rows)
        for place, rows in enumerate(cuts)
        for group in range(groups)
    ]
    return [Part(name, shape, first, first + rows) for first, rows in firsts]


def _gru(compiling: Compiling, layer: int, sizes: GruSizes) -> None:
    d, record, prefix = compiling.d, compiling.record.gru, compiling.layer(layer)
    assert record is not None
    size, width, cells = d.hidden_size, sizes.width, d.group_of(layer, rows=True)
    norm = compiling.norm(prefix, compiling.record.attention_norm)
    inner_norm, output = compiling.norm(prefix, record.inner_norm, width), prefix + record.output
    assert inner_norm is not None

    def read(name: str) -> tuple[Linear, Norm | None]:
        """A matrix of the residual stream, and the norm of what it multiplies."""
        matrix = compiling.matrix(prefix + name, width, size, "qkv")
        return matrix, compiling.read_norm(prefix + name, norm, size)

    (entering, input_norm), (forget, forget_norm), (gate, gate_norm) = (
        read(name) for name in (record.input, record.forget, record.gate)
    )
    compiling.ops.append(
        LinearGru(
            layer,
            cells,
            cells + 1,
            input=entering,
            forget=forget,
            gate=gate,
            out=compiling.matrix(output, size, width, "attention_output"),
            inner_norm=inner_norm,
            input_norm=input_norm,
            forget_norm=forget_norm,
            gate_norm=gate_norm,
            out_norm=compiling.read_norm(output, None, width),
            bound=_bounds(compiling, sizes)[layer] if sizes.bounded else None,
            residual_scale=d.residual_scale,
        )
    )


def _bounds(compiling: Compiling, sizes: GruSizes) -> Floats:
    """The least share of its state that each channel of each layer keeps, (layers, width)."""
    record, layers = compiling.record.gru, compiling.d.layers
    assert record is not None
    name = compiling.prefix + record.bounds
    stored = compiling.vector_once(name, (layers, sizes.width)).reshape(layers, -1)
    shares = np.exp(stored.astype(np.float64) - stored.max(axis=0))
    shares /= shares.sum(axis=0)
    bounds: Floats = (shares.cumsum(axis=0) - shares[0]).astype(np.float32)
    return bounds


def convolution(compiling: Compiling, layer: int) -> None:
    d, record, prefix = compiling.d, compiling.record.convolution, compiling.layer(layer)
    assert record is not None
    size, width, biases = d.hidden_size, d.convolution_width, d.convolution_bias
    names = [prefix + name for name in (record.weight, record.other_weight) if name is not None]
    name = compiling.choose([f"{each}.weight" for each in names]).removesuffix(".weight")
    weight = compiling.weights.vector([(f"{name}.weight", (width, 1, d.convolution_length))])
    wide = (2 if record.activated else 3) * width
    inputs, output = prefix + record.inputs, prefix + record.output
    biased = compiling.weights.has(f"{name}.bias") if record.activated else biases
    compiling.adaptable(layer, "inputs", prefix, (record.inputs,), (wide,), size)
    compiling.adaptable(layer, "out", prefix, (record.output,), (size,), width)
    compiling.ops.append(
        ShortConvolution(
            layer,
            d.group_of(layer, rows=True),
            d.convolution_length,
            inputs=compiling.matrix(inputs, wide, size, "qkv"),
            weight=np.ascontiguousarray(weight.reshape(width, -1).T).reshape(-1),
            out=compiling.matrix(output, size, width, "attention_output"),
            norm=compiling.norm(prefix, compiling.record.attention_norm),
            inputs_bias=compiling.bias(inputs, wide) if biases else None,
            bias=compiling.bias(name, width) if biased else None,
            out_bias=compiling.bias(output, size) if biases else None,
            residual_scale=d.residual_scale,
            activated=record.activated,
        )
    )
