"""A model as its config.json describes it: sizes, layers and constants, but no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.layout import StateSpec
from ockham.model.files.untrusted import read_object
from ockham.model.program.activations import read_activation
from ockham.model.program.architectures import ARCHITECTURES, Architecture
from ockham.model.program.experts import ExpertSizes, read_experts
from ockham.model.program.heads import read_pooling
from ockham.model.program.latent import LatentSizes, latent_scale, read_latent
from ockham.model.program.layer_sizes import (
    doubled_widths,
    head_sizes,
    inner_width,
    layer_input_rows,
    read_by_layers,
    read_layer_inputs,
)
from ockham.model.program.multipliers import Multipliers, read_multipliers
from ockham.model.program.pooling import (
    PoolingDescription,
)
from ockham.model.program.record import no_layer
from ockham.model.program.recurrent import (
    RecurrentLayers,
    layers_called,
    layers_of_kind,
    read_recurrent,
)
from ockham.model.program.rope import RopeVariant, read_rope
from ockham.model.program.single import ATTENTION, DENSE, EXPERTS, RECURRENT, kinds_of, of_kinds
from ockham.model.program.unequal import without_attention
from ockham.model.program.values import MOST_SIZE, Spelling, Values

SHORTCUTS = "residual_shortcuts"
"""The key of config.json that says that a model has shortcuts."""


_REFUSED = {
    "use_bidirectional_attention": "only causal attention is supported for this architecture",
    "is_decoder": "encoders are supported as encoders only",
    "clip_qkv": "clipped queries, keys and values are not supported",
    "use_bias": "projections with biases are not supported for this architecture",
    "moe_latent_size": "experts of a latent width are not supported",
}
"""Keys of config.json that change the meaning of the model in a way that is not supported."""


Block = Literal["attention", "latent", "convolution", "recurrent", "experts", "feed_forward"]
"""What a layer is made of."""
MIXERS: frozenset[Block] = frozenset(("attention", "latent", "convolution", "recurrent"))
"""Those by which a token is given something of others. Where a layer has several, they stand side
by side: each reads what the first of them reads."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that keep the same, and therefore share page tables."""

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None
    of_pass: int | None = None
    """The pass whose rows alone have cells; None where every row has one."""
    row_width: int = 0
    """Floats that are kept of each token by layers that keep no keys and values; 0 of those that
    do."""
    ends: bool = False
    """Whether so many floats are kept at the end of each page instead."""
    latent: bool = False
    """Whether a token has one row for all heads, which is key and value."""

    def spec(self, dtype: str, page_tokens: int) -> StateSpec:
        """What each of the layers keeps: keys and values stored as `dtype`."""
        if self.ends:
            return StateSpec.chunk_ends(self.row_width, page_tokens)
        if self.row_width:
            assert self.window is not None, "later rows need the latest ones alone"
            if self.window == 1:
                return StateSpec.rows(self.row_width, 1)
            # With what the row after the last full page needs: the tiers hold full pages.
            behind = (max(self.window - 2, 1) // page_tokens + 1) * page_tokens
            return StateSpec.rows(self.row_width, max(self.window, behind + 1))
        if self.latent:
            return StateSpec.latent_rows(self.head_dim, dtype, self.window)
        return StateSpec.attention(self.kv_heads, self.head_dim, dtype, self.window, self.of_pass)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Everything about a model but its weights.

    `max_position_embeddings` is the number of positions that the checkpoint is meant for, its rope
    scaling included. `windows` and `ropes` have one entry per layer, None for no window or no
    rotation. `checkpoint_dtype` is config.json's, e.g. "bfloat16", or None.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    embedding_scale: float
    attention_scale: float
    residual_scale: float
    logits_scale: float
    attention_softcap: float | None
    final_softcap: float | None
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    ropes: tuple[RopeVariant | None, ...]
    experts: ExpertSizes | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    checkpoint_dtype: str | None
    causal: bool = True
    """Whether a row sees only the rows of its sequence up to its own. Where it does not, all rows
    of a sequence must be in one step, and a window is how far off a cell is that a row just does
    not see, to both sides."""
    norm_bias: bool = False
    learned_positions: int = 0
    """How many positions have a row of a table; 0 where positions are not learned. A row of type t
    in place i of its text has the position t * learned_positions + i."""
    position_offset: int = 0
    """Rows of the checkpoint's table of positions before that of a text's first token."""
    types: int = 0
    """Types of tokens, by which the texts of a pair are told apart."""
    apart: frozenset[int] = frozenset()
    """Layers whose state is in a group of its own, though they keep what others keep."""
    pooling: PoolingDescription | None = None
    """How a vector is made of hidden states; None where the checkpoint says nothing of it."""
    shortcuts: bool = False
    """Whether each branch is added to the product of the residual stream with a matrix of its
    own."""
    widths: tuple[int, ...] | None = None
    """The width of each layer's feed-forward, where they are not all `intermediate_size`."""
    without_attention: tuple[int, ...] = ()
    without_feed_forward: tuple[int, ...] = ()
    """Layers that are a feed-forward alone, and keep no state."""
    convolutions: tuple[int, ...] = ()
    """Layers with a short convolution in the place of attention, over `convolution_length`
    tokens."""
    convolution_length: int = 0
    convolution_width: int = 0
    convolution_bias: bool = False
    recurrent: RecurrentLayers | None = None
    multipliers: Multipliers = Multipliers()
    layer_heads: tuple[tuple[int, int], ...] | None = None
    """The key-value heads of each layer and their size, where they are not all `kv_heads` and
    `head_dim`."""
    values_are_keys: tuple[int, ...] = ()
    """Layers whose values are their keys before norm and rotation."""
    reads: tuple[int, ...] | None = None
    """The layer whose keys and values each layer reads, where it is not always its own."""
    layer_inputs: int = 0
    """How many values each layer is given of a token beside the residual stream."""
    layer_input_rows: int = 0
    """Rows of their table."""
    latent: LatentSizes | None = None
    """Where it is set, `head_dim` is the width of what is kept of a token, and `kv_heads` is 1."""
    passes: int = 1
    """How often the layers between the first and the last one run. `layers` counts each of them
    once for each pass."""

    def blocks(self, layer: int) -> tuple[Block, ...]:
        """What a layer is made of, in the order in which it is added to the residual stream."""
        found: list[Block] = []
        recurs = self.recurrent is not None and layer in self.recurrent.layers
        if self.attends(layer):
            found.append("attention" if self.latent is None else "latent")
        if layer in self.convolutions:
            found.append("convolution")
        if recurs:
            found.append("recurrent")
        if self.experts is not None and layer in self.experts.layers:
            found.append("experts")
        elif layer not in self.without_feed_forward:
            found.append("feed_forward")
        return tuple(found)

    def attends(self, layer: int) -> bool:
        """Whether a layer looks at keys and values."""
        own = self.recurrent
        recurs = own is not None and layer in own.layers and not own.beside
        return not (recurs or layer in self.convolutions or layer in self.without_attention)

    def heads_of(self, layer: int) -> tuple[int, int]:
        """A layer's key-value heads, and the size of a head."""
        if self.layer_heads is None:
            return self.kv_heads, self.head_dim
        return self.layer_heads[layer]

    def read_by(self, layer: int) -> int:
        """The layer whose keys and values a layer reads."""
        return layer if self.reads is None else self.reads[layer]

    @property
    def unread(self) -> tuple[str, ...]:
        """What checkpoints may hold of keys and values of layers that read those of others: names
        as the compiler makes them, behind the model's prefix."""
        record = self.architecture
        return tuple(
            f"{record.layers}{layer}.{name}."
            for layer in range(self.layers)
            if self.read_by(layer) != layer
            for name in (*record.qkv[1:], record.k_norm)
        )

    @property
    def read_by_others(self) -> frozenset[int]:
        """The layers whose keys and values other layers read too."""
        return frozenset(own for layer, own in enumerate(self.reads or ()) if own != layer)

    def pass_of(self, layer: int) -> int:
        """Which pass a layer is of, counted from 0; 0 too where layers run once."""
        block = (self.layers - 2) // self.passes
        return 0 if layer == self.layers - 1 else max(0, layer - 1) // max(1, block)

    def stored(self, layer: int) -> int:
        """The number under which the checkpoint has a layer's weights."""
        if self.passes == 1 or layer == 0:
            return layer
        block = (self.layers - 2) // self.passes
        return 1 + block if layer == self.layers - 1 else 1 + (layer - 1) % block

    @property
    def generates(self) -> bool:
        """Whether the model has a head over its vocabulary."""
        return bool(self.architecture.heads)

    @property
    def dual_chunk(self) -> bool:
        """Whether a layer has dual chunk attention, so that its rows must see all that comes before
        them."""
        return any(rope is not None and rope.dual_chunk is not None for rope in self.ropes)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers that attend by window, and those that stand apart by themselves, in the order
        in which each first comes; all together where rows see what follows them, since no cell is
        let go before the step has ended."""
        keeping: dict[object, tuple[Block, list[int]]] = {}
        for layer in range(self.layers):
            for block in self.blocks(layer):
                if (own := self._keeps(layer, block)) is not None:
                    keeping.setdefault(own, (block, []))[1].append(layer)
        return tuple(
            group
            for block, layers in keeping.values()
            for group in self._groups_of(block, tuple(layers))
        )

    def _keeps(self, layer: int, block: Block) -> object:
        """What layers have in common that keep the same for a block; None where nothing is kept."""
        if block in ("convolution", "recurrent"):
            return block
        if block not in MIXERS or self.read_by(layer) != layer:
            return None
        return self._window(layer), layer in self.apart, self.pass_of(layer), self.heads_of(layer)

    def _window(self, layer: int) -> int | None:
        return self.windows[layer] if self.causal else None

    def _groups_of(self, block: Block, layers: tuple[int, ...]) -> list[LayerGroup]:
        """What layers keep for a block: that of convolutions and recurrent ones is rows of
        floats."""
        if block == "convolution":
            return [_rows(layers, self.convolution_width, self.convolution_length)]
        if block == "recurrent":
            assert self.recurrent is not None, "of which the block is"
            own = self.recurrent
            return [_rows(layers, own.cell_floats, 1), _rows(layers, own.end_floats, 1, True)]
        number = self.pass_of(layers[0])
        return [
            LayerGroup(
                layers,
                *self.heads_of(layers[0]),
                self._window(layers[0]),
                number - 1 if number else None,
                latent=self.latent is not None,
            )
        ]

    def constants(self) -> dict[str, Any]:
        """What decides the arithmetic besides the weights, as plain values."""
        beside = (
            *("architecture", "ropes", "eos_token_ids", "bos_token_id", "checkpoint_dtype"),
            "pooling",
            "apart",
        )
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in beside}
        # What has its default is left out, so that the ids of models that do without it stay.
        values = {
            f.name: values[f.name]
            for f in fields(self)
            if f.name in values and values[f.name] != f.default
        }
        experts = {} if self.experts is None else asdict(self.experts)
        if self.experts is not None:
            experts = {
                f.name: experts[f.name]
                for f in fields(self.experts)
                if getattr(self.experts, f.name) != f.default
            }
        if self.recurrent is not None:
            own = asdict(self.recurrent)
            values["recurrent"] = [type(self.recurrent).__name__] + [
                (f.name, own[f.name]) for f in fields(self.recurrent) if own[f.name] != f.default
            ]
        if self.latent is not None:
            values["latent"] = asdict(self.latent)
        if "multipliers" in values:
            values["multipliers"] = asdict(self.multipliers)
        return {**values, "architecture": self.architecture.name, "experts": experts or None}

    def group_of(self, layer: int, rows: bool = False) -> int:
        """The number of the group whose keys and values a layer reads, or of the first in which it
        keeps `rows` of floats."""
        own = self.read_by(layer)
        return next(
            number
            for number, group in enumerate(self.groups)
            if own in group.layers and bool(group.row_width) == rows
        )


def _rows(layers: tuple[int, ...], width: int, window: int, ends: bool = False) -> LayerGroup:
    return LayerGroup(layers, 1, width, window, None, width, ends)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint. Raises ModelError if it is missing or no JSON object."""
    path = directory / "config.json"
    try:
        return read_object(path)
    except FileNotFoundError:
        raise ModelError(f"{directory} has no config.json, so it is no checkpoint.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The record of a config's architecture; raises ModelError with the list of those known."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"architectures of config.json must be a list of names, not {shown(names)}."
        )
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names:
        raise ModelError(
            "config.json names no architecture (model_type "
            f"{shown(config.get('model_type'))}), so it is of no model that Ockham knows, or of a "
            "part of one; name the directory of the whole model."
        )
    stated = ", ".join(names[:5])
    raise ModelError(
        f"the architecture {stated} is not supported; supported are {', '.join(ARCHITECTURES)}."
    )


def describe(config: Mapping[str, Any], spelling: Spelling | None = None) -> ModelDescription:
    """Read a config.json. Raises ModelError for what is missing, contradictory or unsupported."""
    spelling = Spelling() if spelling is None else spelling
    try:
        return _described(config, spelling)
    except ModelError:
        raise
    except _WRONG_KIND as error:
        raise ModelError(
            f"{spelling.file} has a value of the wrong kind: {shown(error)}."
        ) from error


_WRONG_KIND = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a value of an unexpected type or size raises."""


def _described(config: Mapping[str, Any], spelling: Spelling) -> ModelDescription:
    architecture = find_architecture(config)
    if architecture.text_config is not None and config.get(architecture.text_config) is not None:
        # What the outer part says of tokens and types holds for the whole.
        outer = {key: config[key] for key in _OUTER_KEYS if config.get(key) is not None}
        text = config[architecture.text_config]
        # Where the two differ, a head that the checkpoint has beside the table shows (`own_head`).
        if text.get("tie_word_embeddings"):
            outer["tie_word_embeddings"] = True
        config = {**text, **outer}
    config = {**architecture.defaults, **config}
    if architecture.usual is not None:
        config = {**config, **architecture.usual(config)}
    own = {key: config[name] for key, name in architecture.keys.items() if name in config}
    spelling = replace(spelling, names={**architecture.keys, **spelling.names})
    return _describe(architecture, Values({**config, **own}, architecture.name, spelling))


_OUTER_KEYS = ("eos_token_id", "bos_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
"""What a multimodal config.json may say outside of its text part."""


def _describe(architecture: Architecture, values: Values) -> ModelDescription:
    config = values.config
    for key, why in _REFUSED.items():
        given = config.get(key)
        harmless = key == architecture.bidirectional_switch or (
            given is not None and given == architecture.of_images.get(key)
        )
        if given and not harmless:
            raise ModelError(f"{values.spelling.file} sets {key}: {why}.")
    layers, passes = _layers(architecture, values)
    heads = values.size("num_attention_heads")
    hidden_size = values.size("hidden_size")
    widths = values.sizes(architecture.intermediate, layers)
    kv_heads = values.size("num_key_value_heads", heads)
    head_dim = values.size("head_dim", hidden_size // heads)
    latent = read_latent(architecture, values)
    if latent is not None:
        kv_heads, head_dim = 1, latent.rotated + latent.rank
    if heads % kv_heads:
        raise ModelError(
            f"{values.spelling.of('num_attention_heads')} ({heads}) is not a multiple of "
            f"{values.spelling.of('num_key_value_heads')} ({kv_heads})."
        )
    sliding = _sliding_layers(architecture, config, layers)
    switch = architecture.bidirectional_switch
    causal = architecture.causal and not (switch is not None and values.flag(switch))
    convolutions, length = _convolutions(architecture, values, layers)
    window = values.size("sliding_window") if any(sliding) else None
    if window is not None and not causal:
        window = window // 2 + 1  # config.json counts both sides
    values.size("max_position_embeddings")
    rotated = architecture.rotates is not no_layer
    sizes = head_sizes(architecture, values, sliding, (kv_heads, head_dim), heads)
    reads = read_by_layers(architecture, values, sliding)
    kinds = [(slides, size[1]) for slides, size in zip(sliding, sizes, strict=True)]
    ropes = {
        kind: (
            read_rope(config, architecture, kind[1] if latent is None else latent.rotated, kind[0])
            if rotated
            else None
        )
        for kind in set(kinds)
    }
    positions = [rope.longest for rope in ropes.values() if rope is not None]
    longest = max(positions, default=values.size("max_position_embeddings"))
    if longest > MOST_SIZE:
        raise ModelError(
            f"the rotary embedding of {values.spelling.file} reaches {shown(longest)} positions; "
            f"at most {MOST_SIZE} are supported."
        )
    layer_inputs = read_layer_inputs(architecture, values)
    learned, offset = _learned_positions(architecture, values)
    bos = values.token_ids("bos_token_id")
    return ModelDescription(
        architecture=architecture,
        vocab_size=values.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=max(widths) if widths else inner_width(architecture, values),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=learned or longest,
        norm_eps=values.number("rms_norm_eps", 1e-6),
        activation=read_activation(architecture, values),
        qkv_bias=values.flag(architecture.qkv_bias),
        output_bias=values.flag(architecture.output_bias),
        mlp_bias=values.flag(architecture.mlp_bias),
        embedding_scale=_root(
            values.number(architecture.embedding_scale, 1.0), architecture.embedding_scale_root
        ),
        attention_scale=(
            _attention_scale(architecture, values, head_dim)
            if latent is None
            else latent_scale(latent, ropes[kinds[0]])
        ),
        residual_scale=_residual_scale(architecture, values, layers),
        logits_scale=_logits_scale(architecture, values, hidden_size),
        attention_softcap=values.optional_number(architecture.attention_softcap),
        final_softcap=values.optional_number(architecture.final_softcap),
        tied_embeddings=values.flag("tie_word_embeddings"),
        windows=tuple(window if slides else None for slides in sliding),
        ropes=tuple(
            ropes[kind] if architecture.rotates(config, layer) else None
            for layer, kind in enumerate(kinds)
        ),
        experts=read_experts(architecture, values, layers),
        eos_token_ids=values.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        checkpoint_dtype=_dtype(config),
        causal=causal,
        norm_bias=values.flag(architecture.norm_bias),
        learned_positions=learned,
        position_offset=offset,
        types=values.size("type_vocab_size") if architecture.types is not None else 0,
        pooling=read_pooling(architecture, values, hidden_size),
        shortcuts=values.flag(SHORTCUTS),
        widths=widths or doubled_widths(architecture, values, reads),
        layer_heads=sizes if len({*sizes, (kv_heads, head_dim)}) > 1 else None,
        values_are_keys=tuple(
            layer
            for layer, slides in enumerate(sliding)
            if not slides
            and architecture.values_are_keys is not None
            and values.flag(architecture.values_are_keys)
        ),
        reads=reads,
        layer_inputs=layer_inputs,
        layer_input_rows=layer_input_rows(architecture, values) if layer_inputs else 0,
        without_attention=(
            of_kinds(config, layers, DENSE, EXPERTS)
            if architecture.single
            else without_attention(values, layers)
        ),
        without_feed_forward=(
            of_kinds(config, layers, ATTENTION, RECURRENT) if architecture.single else ()
        ),
        passes=passes,
        convolutions=convolutions,
        convolution_length=length,
        convolution_width=values.size(architecture.convolution.width)
        if architecture.convolution is not None and convolutions
        else 0,
        recurrent=read_recurrent(architecture, values, layers),
        multipliers=read_multipliers(architecture, values),
        latent=latent,
        convolution_bias=bool(convolutions)
        and architecture.convolution is not None
        and values.flag(architecture.convolution.bias),
    )


def _convolutions(
    architecture: Architecture, values: Values, layers: int
) -> tuple[tuple[int, ...], int]:
    """The layers that have a short convolution, and over how many tokens."""
    record, config = architecture.convolution, values.config
    if record is None:
        return (), 0
    types = config.get("layer_types")
    if types is None:
        attending = config.get("full_attn_idxs")
        every = range(layers) if attending is None else {int(layer) for layer in attending}
        types = ["full_attention" if i in every else record.layer_type for i in range(layers)]
    if architecture.usual is not None:  # which knows no other kinds
        own = layers_called(types, record.layer_type)
    else:
        own = layers_of_kind(values, types, (record.layer_type,), layers)
    return own, values.size(record.length) if own else 0


def _layers(architecture: Architecture, values: Values) -> tuple[int, int]:
    """How many layers run, and how often those do that run several times."""
    kinds = len(kinds_of(values.config)) if architecture.single else None
    stored = values.size("num_hidden_layers", kinds)
    if architecture.passes is None:
        return stored, 1
    passes = values.size(architecture.passes)
    if stored < 3:
        raise ModelError(
            f"num_hidden_layers of config.json is {stored}: a model whose layers run "
            "several times has a first one, a last one and some between."
        )
    layers = 2 + (stored - 2) * passes
    if layers > MOST_SIZE:
        raise ModelError(f"{architecture.passes} of config.json makes {shown(layers)} layers.")
    return layers, passes


def _learned_positions(architecture: Architecture, values: Values) -> tuple[int, int]:
    """How many learned positions a text may take, and how many rows stand before the first."""
    if architecture.positions is None:
        return 0, 0
    kind = values.config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ModelError(
            f"{values.spelling.of('position_embedding_type')} is {shown(kind)}; only absolute "
            "positions are supported."
        )
    rows, offset = values.size("max_position_embeddings"), 0
    if architecture.positions_after is not None:
        ids = values.token_ids(architecture.positions_after)
        offset = ids[0] + 1 if ids else 0
    if offset >= rows:
        raise ModelError(
            f"{values.spelling.of('max_position_embeddings')} is {rows}, which leaves no position "
            f"after the first {offset}."
        )
    return rows - offset, offset


def _dtype(config: Mapping[str, Any]) -> str | None:
    named = config.get("dtype") or config.get("torch_dtype")
    if named is not None and not isinstance(named, str):
        raise ModelError(f"the dtype of config.json must be a name, not {shown(named)}.")
    return named


def _root(value: float, take_root: bool) -> float:
    return math.sqrt(value) if take_root else value


def _attention_scale(architecture: Architecture, values: Values, head_dim: int) -> float:
    if architecture.attention_scale is None:
        return 1.0 / math.sqrt(head_dim)
    if isinstance(architecture.attention_scale, float):
        return architecture.attention_scale
    scale = values.number(architecture.attention_scale, head_dim)
    return 1.0 / math.sqrt(scale) if architecture.attention_scale_root else scale


def _residual_scale(architecture: Architecture, values: Values, layers: int) -> float:
    scale = values.number(architecture.residual_scale, 1.0)
    return scale / math.sqrt(layers) if architecture.residual_scale_by_depth else scale


def _logits_scale(architecture: Architecture, values: Values, hidden_size: int) -> float:
    if architecture.logits_multiplier is not None:
        return values.number(architecture.logits_multiplier, 1.0)
    divisor = values.number(architecture.logits_divisor, 1.0)
    return divisor / hidden_size if architecture.logits_divisor_of_width else 1.0 / divisor


def _sliding_layers(
    architecture: Architecture, config: Mapping[str, Any], layers: int
) -> list[bool]:
    """Which layers see only a window."""
    switch = architecture.window_switch
    if not config.get("sliding_window") or (switch is not None and not config.get(switch)):
        return [False] * layers
    types = config.get("layer_types") if architecture.layer_types else None
    if types is None:
        return [architecture.slides(config, layer) for layer in range(layers)]
    if len(types) != layers:
        raise ModelError(
            f"layer_types of config.json has {len(types)} entries for {layers} layers."
        )
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"the layer type {shown(kind)} is not supported; supported are full_attention and "
                "sliding_attention."
            )
    return [kind == "sliding_attention" for kind in types]
