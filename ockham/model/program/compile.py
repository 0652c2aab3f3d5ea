"""From a description and its weights to a program: the one decoder that serves all records.

The compiler runs against a `Weights`: the loader reads and packs what it is asked for; the scale
only checks that it is there and adds up what it would take. Both see the same calls, so that a
memory plan made before loading cannot forget anything.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Linear, MatrixPart, Role
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Dense,
    Embed,
    Experts,
    FeedForward,
    GatedDelta,
    Head,
    HiddenOutput,
    LatentInput,
    LayerInputBranch,
    LayerInputs,
    Norm,
    Operation,
    Program,
    Recurse,
    Rope,
    Route,
    ScaleStream,
    ShortConvolution,
    StateSpace,
)
from ockham.model.program.description import ExpertSizes, LatentSizes, ModelDescription
from ockham.model.program.pooling import DenseLayer
from ockham.model.program.record import ExpertRecord
from ockham.model.program.recurrent import DeltaSizes, StateSpaceSizes
from ockham.model.program.weights import Part, Weights


def compile_program(
    description: ModelDescription, weights: Weights, max_model_len: int, *, head: bool = True
) -> Program:
    """Compile a model for sequences of up to `max_model_len` tokens (rotary variants depend on it).

    Without a `head` (and where the architecture has none) the program ends in a HiddenOutput: the
    hidden states after the final norm are those of the layer `description.layers`. What the
    description's pooling multiplies with is in `Program.pooled` in any case.

    Raises ModelError naming the first tensor that is missing or of the wrong shape.
    """
    return _Compiler(description, weights, max_model_len).program(head and description.generates)


def _beside(prefix: str, block: str, name: str) -> str:
    """A name in a block of experts, or from the layer on where it begins with a dot."""
    return prefix + name[1:] if name.startswith(".") else block + name


SHORTCUT = "shortcut"
"""The name of a branch's matrix on the residual stream, in the module of the branch."""


class _Compiler:
    def __init__(self, description: ModelDescription, weights: Weights, max_model_len: int) -> None:
        self.d = description
        self.record = description.architecture
        self.weights = weights
        self._ropes: dict[str, Rope] = {}
        self._max_model_len = max_model_len
        self._ops: list[Operation] = []
        self._breakpoints: dict[str, int] = {}
        self._parts: dict[str, MatrixPart] = {}
        table = self.record.table + ".weight"
        self._prefix = self._choose([p + table for p in self.record.prefixes]).removesuffix(table)

    def program(self, head: bool) -> Program:
        shape = self.d.vocab_size, self.d.hidden_size
        table = self._matrix(self._prefix + self.record.table, *shape, "embedding")
        self._ops.append(
            Embed(
                table,
                self.d.embedding_scale,
                self._positions(),
                self._types(),
                self._norm(self._prefix, self.record.embedding_norm),
            )
        )
        if self.d.layer_inputs:
            self._ops.append(self._layer_inputs())
        first_pass: dict[int, list[Operation]] = {}
        for layer in range(self.d.layers):
            number = self.d.pass_of(layer)
            if number and number > self.d.pass_of(layer - 1):
                self._recurse(number - 1, layer)
            self._mark(f"layer.{layer}.before")
            start = len(self._ops)
            if number:
                self._again(layer, first_pass[self.d.stored(layer)])
                self._mark(f"layer.{layer}.after")
                continue
            if layer in self.d.convolutions:
                self._convolution(layer)
            elif self.d.recurrent is not None and layer in self.d.recurrent.layers:
                self._recurrent(layer, self.d.recurrent)
            elif self.d.latent is not None:
                self._latent(layer, self.d.latent)
            elif layer not in self.d.without_attention:
                self._attention(layer)
            if self.d.experts is not None and layer in self.d.experts.layers:
                self._mixture(layer, self.d.experts)
            elif layer not in self.d.without_feed_forward:
                self._feed_forward(layer)
            self._layer_end(layer)
            first_pass[self.d.stored(layer)] = self._ops[start:]
            self._mark(f"layer.{layer}.after")
        self._mark("head")
        if head:
            self._ops.append(self._head(table))
        else:
            norm = self._norm(self._prefix, self.record.final_norm)
            self._ops.append(HiddenOutput(self.d.layers, norm))
        return Program(tuple(self._ops), self._breakpoints, self._parts, self._pooled())

    def _layer_inputs(self) -> LayerInputs:
        d, record = self.d, self.record.layer_inputs
        assert record is not None, "so it was described"
        values = d.layers * d.layer_inputs
        norm = self._norm(self._prefix, record.norm, d.layer_inputs)
        assert norm is not None
        return LayerInputs(
            self._matrix(self._prefix + record.table, d.layer_input_rows, values, "embedding"),
            self._matrix(self._prefix + record.projection, values, d.hidden_size, "gate_up"),
            norm,
            table_scale=d.layer_inputs**0.5,
            projection_scale=d.hidden_size**-0.5,
            scale=0.5**0.5,
        )

    def _layer_end(self, layer: int) -> None:
        """What stands behind a layer's feed-forward."""
        d, prefix, own = self.d, self._layer(layer), self.record.layer_inputs
        if d.layer_inputs and own is not None:
            size, inputs = d.hidden_size, d.layer_inputs
            self._adaptable(layer, "input_gate", prefix, (own.gate,), (inputs,), size)
            self._adaptable(layer, "input_projection", prefix, (own.output,), (size,), inputs)
            self._ops.append(
                LayerInputBranch(
                    layer,
                    layer * inputs,
                    self._matrix(prefix + own.gate, inputs, size, "gate_up"),
                    self._matrix(prefix + own.output, size, inputs, "down"),
                    d.activation,
                    self._norm(prefix, own.post_norm),
                )
            )
        if self.record.layer_scale is not None:
            scale = self.weights.vector([(prefix + self.record.layer_scale, (1,))])
            self._ops.append(ScaleStream(layer, scale))

    def _pooled(self) -> tuple[Dense, ...]:
        return tuple(map(self._dense, () if self.d.pooling is None else self.d.pooling.dense))

    def _dense(self, layer: DenseLayer) -> Dense:
        if layer.rows:
            name, shape = self._head_name(), (self.d.vocab_size, self.d.hidden_size)
            parts = [Part(name, shape, row, row + 1) for row in layer.rows]
            return Dense(self.weights.linear(parts, "pooled"))
        prefix = self._prefix if layer.own else ""
        name = prefix + layer.name
        return Dense(
            self._matrix(name, layer.outputs, layer.inputs, "pooled"),
            self._bias(name, layer.outputs) if layer.bias else None,
            layer.activation,
            self._norm(prefix, layer.norm, layer.outputs),
        )

    def _positions(self) -> Linear | None:
        d, name = self.d, self.record.positions
        if name is None:
            return None
        rows = d.position_offset + d.learned_positions
        shape = (rows, d.hidden_size)
        part = Part(f"{self._prefix}{name}.weight", shape, d.position_offset, rows)
        return self.weights.linear([part], "positions")

    def _types(self) -> Linear | None:
        d, name = self.d, self.record.types
        if name is None:
            return None
        return self._matrix(self._prefix + name, d.types, d.hidden_size, "positions")

    def _mark(self, name: str) -> None:
        self._breakpoints[name] = len(self._ops)

    def _recurse(self, number: int, layer: int) -> None:
        """Let rows decide whether they take the pass that begins with a layer."""
        name = f"{self._prefix}{self.record.routers}{number}"
        last = self._ops_of_pass() * (self.d.passes - 1 - number) + self.d.passes - 1 - number
        self._ops.append(
            Recurse(
                number,
                self.d.group_of(layer),
                self.weights.vector([(f"{name}.weight", (self.d.hidden_size,))]),
                self.weights.vector([(f"{name}.bias", (1,))]),
                len(self._ops) + last,
            )
        )

    def _ops_of_pass(self) -> int:
        """How many operations the layers of a pass are."""
        first, stop = (
            self._breakpoints[f"layer.{n}.{at}"]
            for n, at in ((1, "before"), ((self.d.layers - 2) // self.d.passes, "after"))
        )
        return stop - first

    def _again(self, layer: int, ops: Many[Operation]) -> None:
        """The operations of a layer once more, with other state."""
        for op in ops:
            own: dict[str, int] = {"layer": layer}
            if isinstance(op, (AttentionInput, Attend)):
                own["group"] = self.d.group_of(layer)
            if isinstance(op, Attend):
                self._mark(f"layer.{layer}.pattern")
            self._ops.append(replace(op, **own))  # type: ignore[type-var]

    def _attention(self, layer: int) -> None:
        d, record, prefix = self.d, self.record, self._layer(layer)
        (kv_heads, head_dim), names = d.heads_of(layer), record.qkv
        kv = kv_heads * head_dim
        widths: tuple[int, ...] = (d.heads * head_dim, kv, kv)
        reads, same = d.read_by(layer), layer in d.values_are_keys
        if reads != layer or same:
            sides = 1 if reads != layer else 2
            names, widths = names[:sides], widths[:sides]
        whole, after = record.qk_norm == "whole", record.qk_norm == "rotated"
        rope, pairs = self._rope(layer), None
        if record.neighbours and rope is not None:
            pairs = (head_dim, rope.rotary_dim)
        rotated = (pairs, pairs, None)
        if after and rope is not None and rope.dual_chunk is not None:
            raise ModelError(
                f"dual chunk attention is not supported for {record.name}, whose queries and keys "
                "are normed after their rotation."
            )
        group, shape = d.group_of(layer), (d.heads, kv_heads, head_dim)
        self._ops.append(
            AttentionInput(
                layer,
                group,
                *shape,
                qkv=(
                    self._gated(prefix, names, widths)
                    if record.output_gates
                    else self._packed(prefix, names, widths, d.hidden_size, "qkv", rotated)
                ),
                norm=(
                    self._norm(prefix, record.attention_norm)
                    if layer or record.first_attention_norm
                    else None
                ),
                bias=self._packed_bias(prefix, names, widths) if d.qkv_bias else None,
                q_norm=self._head_norm(prefix, record.q_norm, head_dim, widths[0]),
                k_norm=(
                    self._head_norm(prefix, record.k_norm, head_dim, kv) if reads == layer else None
                ),
                norm_whole=whole,
                rope=rope,
                query_weight=self._query_weight(prefix) if after else None,
                v_norm=self._plain_norm(head_dim) if record.v_norm and reads == layer else None,
                values_are_keys=same and reads == layer,
                reads=reads if reads != layer else None,
            )
        )
        if not record.output_gates:  # whose rows of queries and gates do not stand together
            self._adaptable(layer, "qkv", prefix, names, widths, d.hidden_size, rotated)
        self._mark(f"layer.{layer}.pattern")
        self._ops.append(
            Attend(
                layer,
                group,
                *shape,
                scale=d.attention_scale,
                softcap=d.attention_softcap,
                window=d.windows[layer],
                causal=d.causal,
                sinks=(
                    self.weights.vector([(prefix + record.sinks, (d.heads,))])
                    if record.sinks is not None
                    else None
                ),
                reads=reads if reads != layer else None,
            )
        )
        output = prefix + record.attention_output
        self._adaptable(
            layer, "out", prefix, (record.attention_output,), (d.hidden_size,), widths[0]
        )
        self._ops.append(
            AttentionOutput(
                layer,
                out=self._matrix(output, d.hidden_size, widths[0], "attention_output"),
                bias=self._bias(output, d.hidden_size) if d.output_bias else None,
                post_norm=self._norm(prefix, record.attention_post_norm),
                residual_scale=d.residual_scale,
                stream_norm=self._norm(prefix, record.attention_stream_norm),
                shortcut=self._shortcut(output),
                gate=self._output_gates(prefix, record.qkv[0]) if record.output_gates else None,
                gate_norm=(
                    self._norm(prefix, record.attention_norm) if record.output_gates else None
                ),
                inner_norm=self._norm(prefix, record.attention_inner_norm, widths[0]),
            )
        )

    def _latent(self, layer: int, sizes: LatentSizes) -> None:
        d, record, prefix = self.d, self.record.latent, self._layer(layer)
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
            up = self.weights.linear(queries(record.query_up, rank), "qkv")
            query_norm = self._latent_norm(prefix + record.query_norm, rank, sizes)
        else:
            first = queries(record.query, d.hidden_size)
        keys, values = self._heads_of_latent(prefix, sizes)
        self._ops.append(
            LatentInput(
                layer,
                group,
                d.heads,
                d.head_dim,
                inputs=self.weights.linear([*first, *of_keys], "qkv"),
                keys=keys,
                latent_norm=self._latent_norm(prefix + record.norm, sizes.rank, sizes),
                norm=self._norm(prefix, self.record.attention_norm),
                query_norm=query_norm,
                query_up=up,
                rope=self._rope(layer),
            )
        )
        self._mark(f"layer.{layer}.pattern")
        self._ops.append(
            Attend(layer, group, d.heads, 1, d.head_dim, d.attention_scale, d.attention_softcap)
        )
        output, width = self.record.attention_output, d.heads * sizes.value
        self._adaptable(layer, "out", prefix, (output,), (d.hidden_size,), width)
        self._ops.append(
            AttentionOutput(
                layer,
                out=self._matrix(prefix + output, d.hidden_size, width, "attention_output"),
                residual_scale=d.residual_scale,
                values=values,
            )
        )

    def _latent_norm(self, name: str, width: int, sizes: LatentSizes) -> Norm:
        return Norm(self.weights.vector([(f"{name}.weight", (width,))]), sizes.norm_eps)

    def _heads_of_latent(
        self, prefix: str, sizes: LatentSizes
    ) -> tuple[list[Linear], list[Linear]]:
        """Of each head the matrix that takes its queries to the latent, and the one that takes the
        latent to its values."""
        heads, record = self.d.heads, self.record.latent
        assert record is not None
        name = f"{prefix}{record.up}.weight"
        if self.weights.has(name):
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
            [self.weights.linear([part], "qkv") for part in keys],
            [self.weights.linear([part], "qkv") for part in values],
        )

    def _gated(self, prefix: str, names: tuple[str, ...], widths: tuple[int, ...]) -> Linear:
        """Queries, keys and values packed as one matrix, without the gates among the queries."""
        d = self.d
        if d.qkv_bias:
            raise ModelError(f"{self.record.name} with biases of its queries is not supported.")
        shape = (2 * d.heads * d.head_dim, d.hidden_size)
        starts = [2 * head * d.head_dim for head in range(d.heads)]
        queries = [
            Part(f"{prefix}{names[0]}.weight", shape, start, start + d.head_dim) for start in starts
        ]
        others = [
            Part(f"{prefix}{name}.weight", (width, d.hidden_size), 0, width)
            for name, width in zip(names[1:], widths[1:], strict=True)
        ]
        return self.weights.linear([*queries, *others], "qkv")

    def _output_gates(self, prefix: str, name: str) -> Linear:
        d = self.d
        shape = (2 * d.heads * d.head_dim, d.hidden_size)
        starts = [(2 * head + 1) * d.head_dim for head in range(d.heads)]
        parts = [
            Part(f"{prefix}{name}.weight", shape, start, start + d.head_dim) for start in starts
        ]
        return self.weights.linear(parts, "qkv")

    def _recurrent(self, layer: int, sizes: DeltaSizes | StateSpaceSizes) -> None:
        if isinstance(sizes, DeltaSizes):
            self._delta(layer, sizes)
        else:
            self._state_space(layer, sizes)

    def _state_space(self, layer: int, sizes: StateSpaceSizes) -> None:
        d, record, prefix = self.d, self.record.state_space, self._layer(layer)
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
        weight = self.weights.vector([(f"{convolution}.weight", (shape.channels, 1, sizes.length))])
        weight = weight.reshape(shape.channels, -1)[mixed]
        inputs_bias = bias = None
        if sizes.biases:
            every = np.concatenate([np.arange(*each) for each in order])
            inputs_bias = self._bias(name, rows).reshape(rows, -1)[every].reshape(-1)
        if sizes.convolution_bias:
            bias = self._bias(convolution, shape.channels)
            bias = bias.reshape(shape.channels, -1)[mixed].reshape(-1)
        self._adaptable(layer, "out", prefix, (record.output,), (size,), values)
        decay = self.weights.vector([(prefix + record.decay, (heads,))])
        cells = d.group_of(layer)
        self._ops.append(
            StateSpace(
                layer,
                cells,
                cells + 1,
                sizes.key_heads,
                heads,
                sizes.key_dim,
                sizes.value_dim,
                sizes.length,
                inputs=self.weights.linear(parts, "qkv"),
                weight=np.ascontiguousarray(weight.T).reshape(-1),
                decay=decay if sizes.negative else -np.exp(decay),
                step_bias=self.weights.vector([(prefix + record.step_bias, (heads,))]),
                skip=self.weights.vector([(prefix + record.skip, (heads,))]),
                out=self._matrix(prefix + record.output, size, values, "attention_output"),
                norm=self._norm(prefix, self.record.attention_norm),
                group_norm=Norm(
                    self.weights.vector([(f"{prefix}{record.norm}.weight", (values,))]), d.norm_eps
                ),
                norm_groups=sizes.key_heads,
                bias=bias,
                inputs_bias=inputs_bias,
                out_bias=self._bias(prefix + record.output, size) if sizes.biases else None,
                shortest_step=sizes.shortest_step,
                longest_step=sizes.longest_step,
                residual_scale=d.residual_scale,
            )
        )

    def _delta(self, layer: int, sizes: DeltaSizes) -> None:
        d, record, prefix = self.d, self.record.delta, self._layer(layer)
        assert record is not None
        values, channels, heads = sizes.shape.values, sizes.shape.channels, sizes.value_heads
        widths = (channels, values, heads, heads)
        weight = self.weights.vector(
            [(f"{prefix}{record.weight}.weight", (channels, 1, sizes.length))]
        )
        cells = d.group_of(layer)
        inputs = self._delta_inputs(prefix, sizes)
        if not sizes.tiled:  # an adapter's value heads stand in the order of the original
            if not record.fused:  # whose rows of one kind do not stand together
                self._adaptable(layer, "inputs", prefix, record.inputs, widths, d.hidden_size)
            self._adaptable(layer, "out", prefix, (record.output,), (d.hidden_size,), values)
        decay = self.weights.vector([(prefix + record.decay, (heads,))])
        self._ops.append(
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
                decay_bias=self.weights.vector([(prefix + record.decay_bias, (heads,))]),
                head_norm=Norm(
                    self.weights.vector([(f"{prefix}{record.norm}.weight", (sizes.value_dim,))]),
                    d.norm_eps,
                ),
                out=self._matrix(prefix + record.output, d.hidden_size, values, "attention_output"),
                norm=self._norm(prefix, self.record.attention_norm),
                residual_scale=d.residual_scale,
                tiled=sizes.tiled,
            )
        )

    def _delta_inputs(self, prefix: str, sizes: DeltaSizes) -> Linear:
        """The inputs of delta rules in the order of `GatedDelta`, from tensors of their own or from
        those that hold them key head by key head."""
        record, groups = self.record.delta, sizes.key_heads
        assert record is not None
        each = sizes.value_heads // groups
        wide = each * sizes.value_dim
        kinds = (2 * sizes.key_dim + wide, wide, each, each)  # of a key head
        parts: list[Part] = []
        for pair, both in enumerate(record.fused or ("", "")):
            names, own = record.inputs[2 * pair : 2 * pair + 2], kinds[2 * pair : 2 * pair + 2]
            if both and not self.weights.has(f"{prefix}{names[0]}.weight"):
                cuts = own if pair else (sizes.key_dim, sizes.key_dim, wide, wide)
                parts += self._of_key_heads(f"{prefix}{both}.weight", cuts, groups)
                continue
            shapes = [(groups * rows, self.d.hidden_size) for rows in own]
            parts += [
                Part(f"{prefix}{name}.weight", shape, 0, shape[0])
                for name, shape in zip(names, shapes, strict=True)
            ]
        return self.weights.linear(parts, "qkv")

    def _of_key_heads(self, name: str, cuts: tuple[int, ...], groups: int) -> list[Part]:
        """A tensor of rows of several kinds, key head by key head, kind by kind."""
        each = sum(cuts)
        shape = (groups * each, self.d.hidden_size)
        firsts = [
            (group * each + sum(cuts[:place]), rows)
            for place, rows in enumerate(cuts)
            for group in range(groups)
        ]
        return [Part(name, shape, first, first + rows) for first, rows in firsts]

    def _convolution(self, layer: int) -> None:
        d, record, prefix = self.d, self.record.convolution, self._layer(layer)
        assert record is not None
        size, bias = d.hidden_size, d.convolution_bias
        weight = self.weights.vector(
            [(f"{prefix}{record.weight}.weight", (size, 1, d.convolution_length))]
        )
        inputs, output = prefix + record.inputs, prefix + record.output
        self._adaptable(layer, "inputs", prefix, (record.inputs,), (3 * size,), size)
        self._adaptable(layer, "out", prefix, (record.output,), (size,), size)
        self._ops.append(
            ShortConvolution(
                layer,
                d.group_of(layer),
                d.convolution_length,
                inputs=self._matrix(inputs, 3 * size, size, "qkv"),
                weight=np.ascontiguousarray(weight.reshape(size, -1).T).reshape(-1),
                out=self._matrix(output, size, size, "attention_output"),
                norm=self._norm(prefix, self.record.attention_norm),
                inputs_bias=self._bias(inputs, 3 * size) if bias else None,
                bias=self._bias(prefix + record.weight, size) if bias else None,
                out_bias=self._bias(output, size) if bias else None,
                residual_scale=d.residual_scale,
            )
        )

    def _feed_forward(self, layer: int) -> None:
        d, record, prefix = self.d, self.record, self._layer(layer)
        inner = d.intermediate_size if d.widths is None else d.widths[layer]
        widths = (inner,) * (2 if record.gated else 1)
        self._adaptable(layer, "gate_up", prefix, record.gate_up, widths, d.hidden_size)
        self._adaptable(layer, "down", prefix, (record.down,), (d.hidden_size,), inner)
        self._ops.append(
            FeedForward(
                layer,
                gate_up=self._packed(prefix, record.gate_up, widths, d.hidden_size, "gate_up"),
                down=self._matrix(prefix + record.down, d.hidden_size, inner, "down"),
                activation=d.activation,
                norm=self._norm(prefix, record.mlp_norm),
                gate_up_bias=(
                    self._packed_bias(prefix, record.gate_up, widths) if d.mlp_bias else None
                ),
                down_bias=self._bias(prefix + record.down, d.hidden_size) if d.mlp_bias else None,
                post_norm=self._norm(prefix, record.mlp_post_norm),
                residual_scale=d.residual_scale,
                gated=record.gated,
                stream_norm=self._norm(prefix, record.mlp_stream_norm),
                shortcut=self._shortcut(prefix + record.down),
                inner_norm=self._norm(prefix, record.mlp_inner_norm, inner),
            )
        )

    def _mixture(self, layer: int, sizes: ExpertSizes) -> None:
        d, record, prefix = self.d, self.record, self._layer(layer)
        assert record.experts is not None
        experts = record.experts
        names = [f"{prefix}{block}{experts.router}.weight" for block in experts.blocks]
        router = self._choose(names).removesuffix(".weight")
        block = router.removesuffix(experts.router)
        self._mark(f"layer.{layer}.router")
        self._ops.append(
            Route(
                layer,
                router=self._matrix(router, sizes.count, d.hidden_size, "router"),
                top_k=sizes.per_token,
                normalise=sizes.normalise,
                norm=(
                    self._norm(prefix, record.mlp_norm)
                    if experts.router_scale is None
                    else self._router_norm(prefix + experts.router_scale)
                ),
                correction=self._correction(block, sizes.count) if sizes.corrected else None,
                bias=self._bias(router, sizes.count) if sizes.bias else None,
                sigmoid=sizes.sigmoid,
                scale=sizes.scale,
                expert_scales=(
                    None
                    if experts.expert_scales is None
                    else self.weights.vector([(prefix + experts.expert_scales, (sizes.count,))])
                ),
                groups=sizes.groups,
                kept_groups=sizes.kept_groups,
                group_best=sizes.group_best,
            )
        )
        self._mark(f"layer.{layer}.experts")
        all_widths = sizes.widths or ((sizes.intermediate_size,) * sizes.count,) * d.layers
        own_widths = all_widths[sizes.layers.index(layer)]
        gate_up, down = self._expert_matrices(block, own_widths)
        gate_up_bias, down_bias = (
            self._expert_biases(block, own_widths) if sizes.bias else (None, None)
        )
        gated = sizes.shared and experts.shared_gate is not None
        self._ops.append(
            Experts(
                layer,
                top_k=sizes.per_token,
                gate_up=gate_up,
                down=down,
                activation=d.activation,
                shared_gate_up=self._shared_gate_up(prefix, block, experts, sizes.shared),
                shared_down=(
                    self._matrix(
                        _beside(prefix, block, experts.shared_down),
                        d.hidden_size,
                        sizes.shared,
                        "down",
                    )
                    if sizes.shared
                    else None
                ),
                shared_gate=(
                    self._matrix(f"{block}{experts.shared_gate}", 1, d.hidden_size, "router")
                    if gated
                    else None
                ),
                post_norm=self._norm(prefix, record.mlp_post_norm),
                residual_scale=d.residual_scale,
                shortcut=self._shortcut(router),
                gate_up_bias=gate_up_bias,
                down_bias=down_bias,
                norm=self._norm(prefix, experts.norm),
                routed_norm=self._norm(prefix, experts.routed_norm),
                shared_norm=self._norm(prefix, experts.shared_norm) if sizes.shared else None,
                shared_post_norm=(
                    self._norm(prefix, experts.shared_post_norm) if sizes.shared else None
                ),
                gated=experts.gate is not None,
            )
        )

    def _router_norm(self, scale: str) -> Norm:
        size = self.d.hidden_size
        weight: Floats = self.weights.vector([(scale, (size,))]) * np.float32(size**-0.5)
        return Norm(weight, self.d.norm_eps)

    def _correction(self, block: str, count: int) -> Floats:
        """What is added where experts are chosen: stored as a vector, or as a matrix of one row."""
        experts = self.record.experts
        assert experts is not None
        assert experts.correction is not None, "so it was described"
        return self.weights.vector([(block + experts.correction, (count,))])

    def _shared_gate_up(
        self, prefix: str, block: str, experts: ExpertRecord, width: int
    ) -> Linear | None:
        if not width:
            return None
        names = tuple(_beside(prefix, block, name) for name in experts.shared_gate_up)
        widths = (width,) * (1 if experts.gate is None else 2)
        return self._packed("", names, widths, self.d.hidden_size, "gate_up")

    def _expert_matrices(
        self, block: str, widths: tuple[int, ...]
    ) -> tuple[list[Linear], list[Linear]]:
        """Every expert's gate and up, and down projection, stored one by one, or where their widths
        are equal stacked."""
        names, hidden, count = self.record.experts, self.d.hidden_size, len(widths)
        assert names is not None
        if not names.transposed and self.weights.has(block + names.stacked[0]):
            (gates, downs), inner = names.stacked, widths[0]
            rows = inner * (1 if names.gate is None else 2)
            both = self._stack(block + gates, count, rows, hidden, "gate_up")
            return both, self._stack(block + downs, count, hidden, inner, "down")
        experts = [(f"{block}experts.{n}.", inner) for n, inner in enumerate(widths)]
        gate_up = [
            self._packed(expert, names.gate_up, (inner,) * len(names.gate_up), hidden, "gate_up")
            for expert, inner in experts
        ]
        down = [
            self._matrix(expert + names.down, hidden, inner, "down") for expert, inner in experts
        ]
        return gate_up, down

    def _expert_biases(self, block: str, widths: tuple[int, ...]) -> tuple[Floats, Floats]:
        """Of all experts, one after another: of gates and ups, and of what comes down."""
        names, hidden = self.record.experts, self.d.hidden_size
        assert names is not None
        experts = [(f"{block}experts.{n}.", inner) for n, inner in enumerate(widths)]
        gates = [
            (f"{expert}{name}.bias", (inner,))
            for expert, inner in experts
            for name in names.gate_up
        ]
        downs = [(f"{expert}{names.down}.bias", (hidden,)) for expert, _ in experts]
        return self.weights.vector(gates), self.weights.vector(downs)

    def _shortcut(self, beside: str) -> Linear | None:
        """The matrix on the residual stream of the branch that ends in, or begins with, the matrix
        of this name."""
        if not self.d.shortcuts:
            return None
        size, module = self.d.hidden_size, beside.rpartition(".")[0]
        return self._matrix(f"{module}.{SHORTCUT}", size, size, "shortcut")

    def _stack(self, name: str, count: int, rows: int, columns: int, role: Role) -> list[Linear]:
        shape = (count, rows, columns)
        return [
            self.weights.linear([Part(name, shape, n * rows, (n + 1) * rows)], role)
            for n in range(count)
        ]

    def _head(self, table: Linear) -> Head:
        d = self.d
        if d.tied_embeddings:
            out = table
        else:
            name = self._head_name().removesuffix(".weight")
            out = self._matrix(name, d.vocab_size, d.hidden_size, "head")
        return Head(
            out,
            norm=self._norm(self._prefix, self.record.final_norm),
            scale=d.logits_scale,
            softcap=d.final_softcap,
        )

    def _head_name(self) -> str:
        if self.d.tied_embeddings:
            return f"{self._prefix}{self.record.table}.weight"
        return self._choose(list(self.record.heads))

    def _layer(self, layer: int) -> str:
        return f"{self._prefix}{self.record.layers}{self.d.stored(layer)}."

    def _choose(self, names: list[str]) -> str:
        """The first of these names that the checkpoint has."""
        for name in names:
            if self.weights.has(name):
                return name
        raise ModelError(f"the checkpoint has no tensor {' or '.join(map(repr, names))}.")

    def _matrix(self, name: str, rows: int, columns: int, role: Role) -> Linear:
        return self.weights.linear([Part(name + ".weight", (rows, columns), 0, rows)], role)

    def _packed(
        self,
        prefix: str,
        names: tuple[str, ...],
        widths: tuple[int, ...],
        columns: int,
        role: Role,
        pairs: tuple[tuple[int, int] | None, ...] = (),
    ) -> Linear:
        """Projections of these widths packed as one matrix; a single name is stored fused. `pairs`
        are those of each (`Part.pairs`)."""
        widths = widths if len(names) > 1 else (sum(widths),)
        return self.weights.linear(
            [
                Part(f"{prefix}{name}.weight", (rows, columns), 0, rows, own)
                for name, rows, own in zip(
                    names, widths, (*pairs, *(None,) * len(names)), strict=False
                )
            ],
            role,
        )

    def _adaptable(
        self,
        layer: int,
        field: str,
        prefix: str,
        names: tuple[str, ...],
        widths: tuple[int, ...],
        columns: int,
        pairs: tuple[tuple[int, int] | None, ...] = (),
    ) -> None:
        """Note where modules of these widths stand in the matrix of an operation's field: no module
        of layers that run several times, as it stands in several."""
        if self.d.passes > 1 and 0 < layer < self.d.layers - 1:
            return
        widths, first = widths if len(names) > 1 else (sum(widths),), 0
        role = f"layer.{layer}.{field}"
        for name, rows, own in zip(names, widths, (*pairs, *(None,) * len(names)), strict=False):
            self._parts[prefix + name] = MatrixPart(role, first, rows, columns, own)
            first += rows

    def _packed_bias(self, prefix: str, names: tuple[str, ...], widths: tuple[int, ...]) -> Floats:
        widths = widths if len(names) > 1 else (sum(widths),)
        parts = [
            (f"{prefix}{name}.bias", (rows,)) for name, rows in zip(names, widths, strict=True)
        ]
        return self.weights.vector(parts)

    def _bias(self, name: str, rows: int) -> Floats:
        return self.weights.vector([(name + ".bias", (rows,))])

    def _norm(self, prefix: str, name: str | None, width: int | None = None) -> Norm | None:
        if name is None:
            return None
        shape, weight, bias = (width or self.d.hidden_size,), "weight", "bias"
        # Old checkpoints of BERT have TensorFlow's names.
        if self.weights.has(f"{prefix}{name}.gamma"):
            weight, bias = "gamma", "beta"
        return Norm(
            self.weights.vector([(f"{prefix}{name}.{weight}", shape)], self.record.norm_offset),
            self.d.norm_eps,
            self.record.norm_kind,
            self.weights.vector([(f"{prefix}{name}.{bias}", shape)]) if self.d.norm_bias else None,
        )

    def _plain_norm(self, width: int) -> Norm:
        """One without weights."""
        return Norm(np.ones(width, np.float32), self.d.norm_eps)

    def _head_norm(self, prefix: str, name: str, head_dim: int, whole_width: int) -> Norm | None:
        if self.record.qk_norm is None:
            return None
        if self.record.qk_norm == "rotated":
            return self._plain_norm(head_dim)
        whole = self.record.qk_norm == "whole"
        return self._norm(prefix, name, whole_width if whole else head_dim)

    def _query_weight(self, prefix: str) -> Floats:
        """The weights of norms that stand behind the rotation. Those of keys are multiplied with
        queries too, so that keys can be rotated on; what norms divide by is the same before."""
        of_queries, of_keys = (
            self.weights.vector([(f"{prefix}{name}.weight", (self.d.head_dim,))])
            for name in (self.record.q_norm, self.record.k_norm)
        )
        return of_queries * of_keys

    def _rope(self, layer: int) -> Rope | None:
        variant = self.d.ropes[layer]
        if variant is None:
            return None
        key = variant.describe()
        if key not in self._ropes:
            self._ropes[key] = variant.fix(self._max_model_len)
        return self._ropes[key]
