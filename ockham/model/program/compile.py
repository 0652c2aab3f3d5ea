"""From a description and its weights to a program: the one decoder that serves all records.

The compiler runs against a `Weights`: the loader reads and packs what it is asked for; the scale
only checks that it is there and adds up what it would take. Both see the same calls, so that a
memory plan made before loading cannot forget anything.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.seams import Linear
from ockham.kernels.ops import (
    Attend,
    AttentionInput,
    AttentionOutput,
    Dense,
    Embed,
    FeedForward,
    Head,
    HiddenOutput,
    HoldStream,
    LayerInputBranch,
    LayerInputs,
    Norm,
    Operation,
    Program,
    Recurse,
    ScaleStream,
)
from ockham.model.program.compiling.experts import mixture
from ockham.model.program.compiling.latent import latent
from ockham.model.program.compiling.recurrent import convolution, recurrent
from ockham.model.program.compiling.tensors import Compiling
from ockham.model.program.description import MIXERS, Block, ModelDescription
from ockham.model.program.pooling import DenseLayer
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


class _Compiler(Compiling):
    def program(self, head: bool) -> Program:
        shape = self.d.vocab_size, self.d.hidden_size
        table = self.matrix(self.prefix + self.record.table, *shape, "embedding")
        self.ops.append(
            Embed(
                table,
                self.d.embedding_scale,
                self._positions(),
                self._types(),
                self.norm(self.prefix, self.record.embedding_norm),
            )
        )
        if self.d.layer_inputs:
            self.ops.append(self._layer_inputs())
        first_pass: dict[int, list[Operation]] = {}
        for layer in range(self.d.layers):
            number = self.d.pass_of(layer)
            if number and number > self.d.pass_of(layer - 1):
                self._recurse(number - 1, layer)
            self.mark(f"layer.{layer}.before")
            start = len(self.ops)
            if number:
                self._again(layer, first_pass[self.d.stored(layer)])
                self.mark(f"layer.{layer}.after")
                continue
            blocks = self.d.blocks(layer)
            mixers = [block for block in blocks if block in MIXERS]
            if len(mixers) > 1:
                self.ops.append(HoldStream(layer, self.d.hidden_size))
            for block in blocks:
                self._block(layer, block, held=block in mixers[1:])
            self._layer_end(layer)
            first_pass[self.d.stored(layer)] = self.ops[start:]
            self.mark(f"layer.{layer}.after")
        self.mark("head")
        if head:
            self.ops.append(self._head(table))
        else:
            norm = self.norm(self.prefix, self.record.final_norm)
            self.ops.append(HiddenOutput(self.d.layers, norm))
        return Program(tuple(self.ops), self.breakpoints, self.parts, self._pooled())

    def _block(self, layer: int, block: Block, held: bool) -> None:
        """A block of a layer, which reads the stream as it was `held`, or as it is."""
        d = self.d
        if block == "attention":
            self._attention(layer)
        elif block == "latent" and d.latent is not None:
            latent(self, layer, d.latent)
        elif block == "convolution":
            convolution(self, layer)
        elif block == "recurrent" and d.recurrent is not None:
            recurrent(self, layer, d.recurrent, held)
        elif block == "experts" and d.experts is not None:
            mixture(self, layer, d.experts)
        else:
            self._feed_forward(layer)

    def _layer_inputs(self) -> LayerInputs:
        d, record = self.d, self.record.layer_inputs
        assert record is not None, "so it was described"
        values = d.layers * d.layer_inputs
        norm = self.norm(self.prefix, record.norm, d.layer_inputs)
        assert norm is not None
        return LayerInputs(
            self.matrix(self.prefix + record.table, d.layer_input_rows, values, "embedding"),
            self.matrix(self.prefix + record.projection, values, d.hidden_size, "gate_up"),
            norm,
            table_scale=d.layer_inputs**0.5,
            projection_scale=d.hidden_size**-0.5,
            scale=0.5**0.5,
        )

    def _layer_end(self, layer: int) -> None:
        """What stands behind a layer's feed-forward."""
        d, prefix, own = self.d, self.layer(layer), self.record.layer_inputs
        if d.layer_inputs and own is not None:
            size, inputs = d.hidden_size, d.layer_inputs
            self.adaptable(layer, "input_gate", prefix, (own.gate,), (inputs,), size)
            self.adaptable(layer, "input_projection", prefix, (own.output,), (size,), inputs)
            self.ops.append(
                LayerInputBranch(
                    layer,
                    layer * inputs,
                    self.matrix(prefix + own.gate, inputs, size, "gate_up"),
                    self.matrix(prefix + own.output, size, inputs, "down"),
                    d.activation,
                    self.norm(prefix, own.post_norm),
                )
            )
        if self.record.layer_scale is not None:
            scale = self.weights.vector([(prefix + self.record.layer_scale, (1,))])
            self.ops.append(ScaleStream(layer, scale))

    def _pooled(self) -> tuple[Dense, ...]:
        return tuple(map(self._dense, () if self.d.pooling is None else self.d.pooling.dense))

    def _dense(self, layer: DenseLayer) -> Dense:
        if layer.rows:
            name, shape = self._head_name(), (self.d.vocab_size, self.d.hidden_size)
            parts = [Part(name, shape, row, row + 1) for row in layer.rows]
            return Dense(self.weights.linear(parts, "pooled"))
        prefix = self.prefix if layer.own else ""
        name = prefix + layer.name
        return Dense(
            self.matrix(name, layer.outputs, layer.inputs, "pooled"),
            self.bias(name, layer.outputs) if layer.bias else None,
            layer.activation,
            self.norm(prefix, layer.norm, layer.outputs),
        )

    def _positions(self) -> Linear | None:
        d, name = self.d, self.record.positions
        if name is None:
            return None
        rows = d.position_offset + d.learned_positions
        shape = (rows, d.hidden_size)
        part = Part(f"{self.prefix}{name}.weight", shape, d.position_offset, rows)
        return self.weights.linear([part], "positions")

    def _types(self) -> Linear | None:
        d, name = self.d, self.record.types
        if name is None:
            return None
        return self.matrix(self.prefix + name, d.types, d.hidden_size, "positions")

    def _recurse(self, number: int, layer: int) -> None:
        """Let rows decide whether they take the pass that begins with a layer."""
        name = f"{self.prefix}{self.record.routers}{number}"
        last = self._ops_of_pass() * (self.d.passes - 1 - number) + self.d.passes - 1 - number
        self.ops.append(
            Recurse(
                number,
                self.d.group_of(layer),
                self.weights.vector([(f"{name}.weight", (self.d.hidden_size,))]),
                self.weights.vector([(f"{name}.bias", (1,))]),
                len(self.ops) + last,
            )
        )

    def _ops_of_pass(self) -> int:
        """How many operations the layers of a pass are."""
        first, stop = (
            self.breakpoints[f"layer.{n}.{at}"]
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
                self.mark(f"layer.{layer}.pattern")
            self.ops.append(replace(op, **own))  # type: ignore[type-var]

    def _attention(self, layer: int) -> None:
        d, record, prefix = self.d, self.record, self.layer(layer)
        (kv_heads, head_dim), names = d.heads_of(layer), record.qkv
        kv = kv_heads * head_dim
        widths: tuple[int, ...] = (d.heads * head_dim, kv, kv)
        reads, same = d.read_by(layer), layer in d.values_are_keys
        if reads != layer or same:
            sides = 1 if reads != layer else 2
            names, widths = names[:sides], widths[:sides]
        whole, after = record.qk_norm == "whole", record.qk_norm == "rotated"
        rope, pairs = self.rope(layer), None
        if record.neighbours and rope is not None:
            pairs = (head_dim, rope.rotary_dim)
        rotated = (pairs, pairs, None)
        if after and rope is not None and rope.dual_chunk is not None:
            raise ModelError(
                f"dual chunk attention is not supported for {record.name}, whose queries and keys "
                "are normed after their rotation."
            )
        group, shape = d.group_of(layer), (d.heads, kv_heads, head_dim)
        self.ops.append(
            AttentionInput(
                layer,
                group,
                *shape,
                qkv=(
                    self._gated(prefix, names, widths)
                    if record.output_gates
                    else self.packed(prefix, names, widths, d.hidden_size, "qkv", rotated)
                ),
                norm=(
                    self.norm(
                        prefix, record.attention_norm, multiplier=d.multipliers.attention_input
                    )
                    if layer or record.first_attention_norm
                    else None
                ),
                bias=self.packed_bias(prefix, names, widths) if d.qkv_bias else None,
                q_norm=self._head_norm(prefix, record.q_norm, head_dim, widths[0]),
                k_norm=(
                    self._head_norm(prefix, record.k_norm, head_dim, kv) if reads == layer else None
                ),
                norm_whole=whole,
                rope=rope,
                query_weight=self._query_weight(prefix) if after else None,
                v_norm=self.plain_norm(head_dim) if record.v_norm and reads == layer else None,
                values_are_keys=same and reads == layer,
                reads=reads if reads != layer else None,
            )
        )
        if not record.output_gates:  # whose rows of queries and gates do not stand together
            self.adaptable(layer, "qkv", prefix, names, widths, d.hidden_size, rotated)
        self.mark(f"layer.{layer}.pattern")
        self.ops.append(
            Attend(
                layer,
                group,
                *shape,
                scale=d.attention_scale * d.multipliers.keys,
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
        self.adaptable(
            layer, "out", prefix, (record.attention_output,), (d.hidden_size,), widths[0]
        )
        self.ops.append(
            AttentionOutput(
                layer,
                out=self.matrix(output, d.hidden_size, widths[0], "attention_output"),
                bias=self.bias(output, d.hidden_size) if d.output_bias else None,
                post_norm=self.norm(prefix, record.attention_post_norm),
                residual_scale=d.residual_scale * d.multipliers.attention_output,
                stream_norm=self.norm(prefix, record.attention_stream_norm),
                shortcut=self.shortcut(output),
                gate=self._output_gates(prefix, record.qkv[0]) if record.output_gates else None,
                gate_norm=(
                    self.norm(prefix, record.attention_norm) if record.output_gates else None
                ),
                inner_norm=self.norm(prefix, record.attention_inner_norm, widths[0]),
            )
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

    def _feed_forward(self, layer: int) -> None:
        d, record, prefix = self.d, self.record, self.layer(layer)
        inner = d.intermediate_size if d.widths is None else d.widths[layer]
        widths = (inner,) * (2 if record.gated else 1)
        if not record.up_first:  # whose rows do not stand in an adapter's order
            self.adaptable(layer, "gate_up", prefix, record.gate_up, widths, d.hidden_size)
        self.adaptable(layer, "down", prefix, (record.down,), (d.hidden_size,), inner)
        self.ops.append(
            FeedForward(
                layer,
                gate_up=(
                    self._turned(prefix + record.gate_up[0], inner)
                    if record.up_first
                    else self.packed(prefix, record.gate_up, widths, d.hidden_size, "gate_up")
                ),
                down=self.matrix(prefix + record.down, d.hidden_size, inner, "down"),
                activation=d.activation,
                norm=self.read_norm(
                    prefix + record.gate_up[0], self.norm(prefix, record.mlp_norm), d.hidden_size
                ),
                gate_up_bias=(
                    self.packed_bias(prefix, record.gate_up, widths) if d.mlp_bias else None
                ),
                down_bias=self.bias(prefix + record.down, d.hidden_size) if d.mlp_bias else None,
                post_norm=self.norm(prefix, record.mlp_post_norm),
                residual_scale=d.residual_scale * d.multipliers.feed_forward_output,
                gated=record.gated,
                stream_norm=self.norm(prefix, record.mlp_stream_norm),
                shortcut=self.shortcut(prefix + record.down),
                inner_norm=self.read_norm(
                    prefix + record.down, self.norm(prefix, record.mlp_inner_norm, inner), inner
                ),
                gate_scale=d.multipliers.gate,
            )
        )

    def _turned(self, name: str, inner: int) -> Linear:
        """Gates and ups of a projection whose first rows are the ups."""
        if self.d.mlp_bias:
            raise ModelError(f"{self.record.name} with biases of feed-forwards is not supported.")
        shape = (2 * inner, self.d.hidden_size)
        halves = [Part(f"{name}.weight", shape, inner, 2 * inner)]
        halves.append(Part(f"{name}.weight", shape, 0, inner))
        return self.weights.linear(halves, "gate_up")

    def _head(self, table: Linear) -> Head:
        d, name = self.d, self._head_name().removesuffix(".weight")
        out = table
        if not d.tied_embeddings:
            out = self.matrix(name, d.vocab_size, d.hidden_size, "head")
        return Head(
            out,
            norm=self.read_norm(
                name, self.norm(self.prefix, self.record.final_norm), d.hidden_size
            ),
            scale=d.logits_scale,
            softcap=d.final_softcap,
        )

    def _head_name(self) -> str:
        if self.d.tied_embeddings:
            return f"{self.prefix}{self.record.table}.weight"
        return self.choose(list(self.record.heads))

    def _head_norm(self, prefix: str, name: str, head_dim: int, whole_width: int) -> Norm | None:
        if self.record.qk_norm is None:
            return None
        if self.record.qk_norm == "rotated":
            return self.plain_norm(head_dim)
        whole = self.record.qk_norm == "whole"
        return self.norm(prefix, name, whole_width if whole else head_dim)

    def _query_weight(self, prefix: str) -> Floats:
        """The weights of norms that stand behind the rotation. Those of keys are multiplied with
        queries too, so that keys can be rotated on; what norms divide by is the same before."""
        of_queries, of_keys = (
            self.weights.vector([(f"{prefix}{name}.weight", (self.d.head_dim,))])
            for name in (self.record.q_norm, self.record.k_norm)
        )
        return of_queries * of_keys
