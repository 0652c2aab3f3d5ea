"""What a record of an architecture is.

All of them are the same stack (embed; attention and feed-forward branches with their norms, each
added to the residual stream; a head, or what is done with hidden states) with different names,
norms, biases, windows and multipliers. A record says which. Its strings are either names of tensors
(relative to their layer) or keys of config.json; `defaults` are what the model's configuration
class assumes for keys left out, since checkpoints on the hub do leave them out. Nothing here
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ockham.model.program.pooling import How

Config = Mapping[str, Any]
SlidingRule = Callable[[Config, int], bool]
"""(config, layer) -> whether the layer sees only a window, where `layer_types` does not say."""


def no_layer(config: Config, layer: int) -> bool:
    return False


def every_layer(config: Config, layer: int) -> bool:
    return True


def upper_layers(config: Config, layer: int) -> bool:
    """Qwen2, Qwen3: the layers from `max_window_layers` on."""
    return bool(layer >= config["max_window_layers"])


def lower_even_layers(config: Config, layer: int) -> bool:
    """Qwen2-MoE: every other layer below `max_window_layers`."""
    return layer % 2 == 0 and bool(layer < config["max_window_layers"])


def all_but_every_nth_layer(config: Config, layer: int) -> bool:
    """Gemma: the last of every `sliding_window_pattern` layers sees everything."""
    return (layer + 1) % int(config["sliding_window_pattern"]) != 0


def layers_without_rope(config: Config, layer: int) -> bool:
    """SmolLM3, if windows are used at all."""
    return not rotated_by_interval(config, layer)


def rotated_by_interval(config: Config, layer: int) -> bool:
    """SmolLM3: `no_rope_layers` holds 1 for layers that rotate; without it every n-th does not."""
    flags = config.get("no_rope_layers")
    if flags is not None:
        return bool(flags[layer])
    return (layer + 1) % int(config["no_rope_layer_interval"]) != 0


def by_sparse_step(config: Config, layer: int) -> bool:
    """Qwen: every n-th layer has experts, but those that `mlp_only_layers` names."""
    every = int(config.get("decoder_sparse_step") or 1)
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % every == 0


def after_the_dense(config: Config, layer: int) -> bool:
    """All but the first layers have experts."""
    return layer >= int(config["moe_layer_start_index"])


def by_kinds(config: Config, layer: int) -> bool:
    """GLM-4.7-Flash: `mlp_layer_types`, or where it is not given as `after_the_dense`."""
    kinds = config.get("mlp_layer_types")
    return after_the_dense(config, layer) if kinds is None else kinds[layer] == "sparse"


def by_interval(config: Config, layer: int) -> bool:
    """Ernie 4.5: every n-th of the layers from one to another has experts."""
    first, last = (int(config[f"moe_layer_{end}_index"]) for end in ("start", "end"))
    within = first <= layer and (last < 0 or layer <= last)
    return within and (layer + 1) % int(config["moe_layer_interval"]) == 0


def rotated_by_name(config: Config, layer: int) -> bool:
    """Granite: `position_embedding_type` is "rope", or something else where nothing is rotated."""
    return config.get("position_embedding_type") == "rope"


def rounded_inner(config: Config) -> int:
    """LFM2: two thirds of `intermediate_size`, times a factor, up to a multiple."""
    inner = int(config["intermediate_size"])
    if not config["block_auto_adjust_ff_dim"]:
        return inner
    inner, factor = 2 * inner // 3, config["block_ffn_dim_multiplier"]
    if factor is None:
        return inner
    multiple = int(config["block_multiple_of"])
    return -(-int(factor * inner) // multiple) * multiple


def inner_by_ratio(config: Config) -> int:
    """MatMul-free models: where `intermediate_size` is not given, two thirds of the hidden size
    times `hidden_ratio`, up to a multiple of 256."""
    stated = config.get("intermediate_size")
    if stated is not None:
        inner: int = stated  # which its reader checks
        return inner
    inner = int(int(config["hidden_size"]) * (config.get("hidden_ratio") or 4) * 2 / 3)
    return -(-inner // 256) * 256


def five_of_six(config: Config, layer: int) -> bool:
    """Gemma 4: every sixth layer sees everything, and the last one."""
    return (layer + 1) % 6 != 0 and layer + 1 < int(config["num_hidden_layers"])


def rotated_always(config: Config, layer: int) -> bool:
    return True


def three_of_four(config: Config, layer: int) -> bool:
    """OLMo 3: every fourth layer sees everything."""
    return (layer + 1) % 4 != 0


def by_pattern(config: Config, layer: int) -> bool:
    """EXAONE 4: `sliding_window_pattern` is a text that repeats, with L for layers that see a
    window, or a number n: every n-th layer sees everything."""
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str):
        return pattern[layer % len(pattern)] == "L"
    return pattern is not None and pattern != 0 and (layer + 1) % int(pattern) != 0


def rotated_in_windows(config: Config, layer: int) -> bool:
    """EXAONE 4: a layer that sees everything does not rotate where others see a window."""
    if not config.get("sliding_window"):
        return True
    types = config.get("layer_types")
    return by_pattern(config, layer) if types is None else types[layer] == "sliding_attention"


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """A mixture of experts: names relative to the block, which stands at one of `blocks`.

    Experts are stored one by one (`experts.{n}.{gate}.weight`) or `stacked`: gates and ups of shape
    (experts, 2 * I, D), and downs. Where `transposed`, what is stacked has its inputs before its
    outputs, and where `interleaved`, gates and ups take turns (`prequantised/interleaved.py`).
    `layers` says which
    layers have experts. `normalise`, and `bias` (of the router and of all experts), are config
    keys, or facts. `correction` names what is added to a row's weights where its experts are
    chosen, and only there; it is there where the key `correction_switch`, if there is one, says so.
    Where `sigmoid`, a row's weights are not the softmax of its scores but the sigmoid of each.
    `scale` is the key of what the weights of the chosen are multiplied with. Experts stand in as
    many `groups` of neighbours as that key says, of which those of `kept_groups` are chosen from,
    by the sum of the `group_best` largest in each; where `grouped_where` names a key and a value,
    only if it has that value.

    `switch` is the key that says whether there are experts at all. What a row's router reads is
    normed without weights, and multiplied with the vector `router_scale` and hidden_size^-0.5,
    where that is named; `expert_scales` names what the weights of a row's experts are multiplied
    with. The experts then read the stream normed by `norm`, and their sum is normed by
    `routed_norm`; the shared expert has the norms `shared_norm` and `shared_post_norm`. These stand
    in the layer.
    Where `gate` is None, no expert is gated, nor is the shared one.

    A shared expert is as wide as `shared_intermediate` says, times `shared_count` where there is
    one; its names are those from the layer on where they begin with a dot. Where `optional`, a
    model of no experts is dense.
    """

    blocks: tuple[str, ...] = ("mlp.",)
    router: str = "gate"
    correction: str | None = None
    correction_switch: str | None = None
    sigmoid: bool = False
    scale: str | None = None
    groups: str | None = None
    kept_groups: str = "topk_group"
    group_best: int = 1
    grouped_where: tuple[str, str] | None = None
    stacked: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    count: tuple[str, ...] = ("num_experts", "num_local_experts")
    intermediate: str = "moe_intermediate_size"
    normalise: str | bool = "norm_topk_prob"
    layers: SlidingRule = by_sparse_step
    optional: bool = False
    shared_intermediate: str | None = None
    shared_count: str | None = None
    shared_gate_up: tuple[str, ...] = ("shared_expert.gate_proj", "shared_expert.up_proj")
    shared_down: str = "shared_expert.down_proj"
    shared_gate: str | None = "shared_expert_gate"
    bias: str | bool = False
    transposed: bool = False
    interleaved: bool = False
    switch: str | None = None
    router_scale: str | None = None
    expert_scales: str | None = None
    norm: str | None = None
    routed_norm: str | None = None
    shared_norm: str | None = None
    shared_post_norm: str | None = None

    @property
    def gate_up(self) -> tuple[str, ...]:
        """What an expert's first matrix is packed of."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


@dataclass(frozen=True, slots=True)
class ConvolutionRecord:
    """A gated short convolution in the place of attention, in the layers whose entry of
    `layer_types` is `layer_type`; names relative to the layer. `length` and `bias` are keys of
    config.json."""

    layer_type: str = "conv"
    inputs: str = "conv.in_proj"
    weight: str = "conv.conv"
    output: str = "conv.out_proj"
    length: str = "conv_L_cache"
    bias: str = "conv_bias"
    width: str = "hidden_size"
    activated: bool = False
    """Whether the projection is what is convolved and its gate, and the sum goes through silu. Then
    the convolution has a bias where the checkpoint holds one."""
    other_weight: str | None = None
    """What some checkpoints call it."""


@dataclass(frozen=True, slots=True)
class LinearRecord:
    """Linear attention by a Taylor polynomial in the place of attention, in the layers whose entry
    of `layer_types` is `layer_type`; names relative to the layer, and keys of config.json."""

    layer_type: str = "linear_attention"
    inputs: tuple[str, ...] = ("mixer.proj_q", "mixer.proj_k", "mixer.proj_v")
    output: str = "mixer.out_proj"
    heads: str = "linear_num_heads"
    features: str = "linear_feature_dim"
    value_dim: str = "linear_head_dim"


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """Gated delta rules in the place of attention, in the layers whose entry of `layer_types` is
    `layer_type`; names relative to the layer, and keys of config.json. `inputs` are packed in this
    order: queries, keys and values of all heads, z, b, a. A checkpoint may hold the first two, and
    the last two, in one tensor of `fused`: of each key head in turn its query, its key, and the
    values and z of its value heads; and of each key head in turn b and a. `tiled` and `negative`
    are what Ockham says itself of checkpoints that it made of GGUF files (`DeltaSizes`)."""

    layer_type: str = "linear_attention"
    inputs: tuple[str, ...] = (
        "linear_attn.in_proj_qkv",
        "linear_attn.in_proj_z",
        "linear_attn.in_proj_b",
        "linear_attn.in_proj_a",
    )
    fused: tuple[str, ...] = ()
    weight: str = "linear_attn.conv1d"
    decay: str = "linear_attn.A_log"
    decay_bias: str = "linear_attn.dt_bias"
    norm: str = "linear_attn.norm"
    output: str = "linear_attn.out_proj"
    key_heads: str = "linear_num_key_heads"
    value_heads: str = "linear_num_value_heads"
    key_dim: str = "linear_key_head_dim"
    value_dim: str = "linear_value_head_dim"
    length: str = "linear_conv_kernel_dim"
    tiled: str = "linear_value_heads_take_turns"
    negative: str = "linear_decays_are_negative"


@dataclass(frozen=True, slots=True)
class LayerInputRecord:
    """What each layer is given of a token beside the residual stream: `width` and `rows` are keys
    of config.json (there are none where `width` is 0), `table`, `projection` and `norm` stand
    beside the table of embeddings, the others in each layer."""

    width: str = "hidden_size_per_layer_input"
    rows: str = "vocab_size_per_layer_input"
    table: str = "embed_tokens_per_layer"
    projection: str = "per_layer_model_projection"
    norm: str = "per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    output: str = "per_layer_projection"
    post_norm: str = "post_per_layer_input_norm"


@dataclass(frozen=True, slots=True)
class StateSpaceRecord:
    """Selective state spaces (Mamba 2) in the place of attention, in the layers whose entry of
    `layer_types` is one of these `layer_types`; names relative to the layer, and keys of
    config.json. The rows of `inputs` are z, values, keys, queries and a step of each head in this
    order, those of the convolution values, keys and queries.

    Where `beside`, they stand in every layer, side by side with its attention, and both read what
    the layer reads. `normed`, and `norm_first`, whether the norm stands before the gate, are config
    keys, or facts; so are `biases` of both projections and `output_biases` of the last one. `width`
    is the key of the width of all heads together, where the size of a head may be "auto"."""

    layer_types: tuple[str, ...] = ("mamba", "linear_attention")
    inputs: str = "mamba.in_proj"
    weight: str = "mamba.conv1d"
    decay: str = "mamba.A_log"
    step_bias: str = "mamba.dt_bias"
    skip: str = "mamba.D"
    norm: str = "mamba.norm"
    output: str = "mamba.out_proj"
    groups: str = "mamba_n_groups"
    heads: str = "mamba_n_heads"
    state_dim: str = "mamba_d_state"
    head_dim: str = "mamba_d_head"
    length: str = "mamba_d_conv"
    convolution_bias: str = "mamba_conv_bias"
    biases: str = "mamba_proj_bias"
    output_biases: str | None = None
    normed: str | bool = True
    norm_first: str | bool = False
    width: str | None = None
    beside: bool = False
    step_limits: str | None = "time_step_limit"
    negative: str = "linear_decays_are_negative"


@dataclass(frozen=True, slots=True)
class GruRecord:
    """Gated linear recurrences (MLGRU of MatMul-free models) in the place of attention in every
    layer: names relative to the layer, and keys of config.json. `bounds`, beside the table of
    embeddings, has a row of each layer, where `bounded` is set: the bound of a layer's forget gates
    is the sum of the softmax over all rows up to its own, without the first. The keys `expansion`
    and `convolution` may say 1 and nothing alone."""

    input: str = "attn.i_proj"
    forget: str = "attn.f_proj"
    gate: str = "attn.g_proj"
    inner_norm: str = "attn.g_norm"
    output: str = "attn.o_proj"
    bounds: str = "lower_bounds"
    bounded: str = "use_lower_bound"
    expansion: str = "expand_ratio"
    convolution: str = "use_short_conv"


@dataclass(frozen=True, slots=True)
class MultiplierRecord:
    """Keys of config.json for what single products are multiplied with (`multipliers.py`)."""

    attention_input: str = "attention_in_multiplier"
    keys: str = "key_multiplier"
    attention_output: str = "attention_out_multiplier"
    feed_forward: str = "mlp_multipliers"
    """Two: of the gate, and of what comes down."""
    space_input: str = "ssm_in_multiplier"
    space_output: str = "ssm_out_multiplier"
    space_parts: str = "ssm_multipliers"
    """Five: of z, values, keys, queries and steps."""


@dataclass(frozen=True, slots=True)
class LatentRecord:
    """Multi-head latent attention in every layer: names relative to the layer, and keys of
    config.json. Queries come of `query`, or where the key `query_rank` is set of `query_down`,
    `query_norm` and `query_up`. Of each head `up` has the rows of its keys and then those of its
    values; files may hold them apart, those of keys turned (heads, rank, plain), as `key_up` and
    `value_up`. Its norms have an epsilon of their own."""

    query: str = "self_attn.q_proj"
    query_down: str = "self_attn.q_a_proj"
    query_norm: str = "self_attn.q_a_layernorm"
    query_up: str = "self_attn.q_b_proj"
    down: str = "self_attn.kv_a_proj_with_mqa"
    norm: str = "self_attn.kv_a_layernorm"
    up: str = "self_attn.kv_b_proj"
    key_up: str = "self_attn.k_b_proj"
    value_up: str = "self_attn.v_b_proj"
    query_rank: str = "q_lora_rank"
    rank: str = "kv_lora_rank"
    rotated: str = "qk_rope_head_dim"
    plain: str = "qk_nope_head_dim"
    value: str = "v_head_dim"
    neighbours: str | bool = True
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class PooledRecord:
    """One product of a classifier's head with a pooled hidden state: of the hidden size, or where
    `labelled` of as many outputs as there are labels. `own` says that its name stands behind the
    model's own prefix. `activation` and `bias` are keys of config.json, or facts; `norm` names a
    LayerNorm that comes last."""

    name: str
    own: bool = False
    labelled: bool = False
    activation: str = "identity"
    activation_key: str | None = None
    bias: str | bool = True
    norm: str | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model. See the module's docstring for what the strings mean.

    `qkv` and `gate_up` name the projections in the order in which their rows are packed; a single
    name is a projection that the checkpoint stores fused in that order. `norm_offset` is added to
    the weights of norms. A multiplier of None is 1. The scale of attention scores is
    `head_dim ** -0.5`, or `config[attention_scale]`, or that to the power -0.5 where
    `attention_scale_root`.
    """

    name: str
    prefixes: tuple[str, ...] = ("model.",)
    table: str = "embed_tokens"
    layers: str = "layers."
    heads: tuple[str, ...] = ("lm_head.weight",)
    """Empty for what ends in hidden states."""
    text_config: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of config.json as this project calls them -> as this architecture does."""
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    final_norm: str | None = "norm"
    attention_inner_norm: str | None = None
    """The norm of what the attention's output projection multiplies; of `down` the same."""
    mlp_inner_norm: str | None = None
    matrix_norm: str | None = None
    """The norm of what a matrix multiplies, behind that of its branch: its name under each
    matrix's own. Its epsilon is 1e-6."""
    norm_offset: float = 0.0
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_bias: str | bool = False
    first_attention_norm: bool = True
    """Whether the first layer has its attention norm."""
    attention_stream_norm: str | None = None
    """The norm of the residual stream itself after the attention was added; of the feed-forward the
    same."""
    mlp_stream_norm: str | None = None
    qk_norm: Literal["head", "whole", "rotated"] | None = None
    """Whether queries and keys are normed head by head, all heads of a row together, or head by
    head after their rotation."""
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    v_norm: bool = False
    """Whether values are normed head by head, without weights."""
    whole_head_dim: str | None = None
    """The key of config.json for the size of heads in layers that see everything."""
    whole_kv_heads: str | None = None
    """The same for their key-value heads, where `values_are_keys` is set."""
    values_are_keys: str | None = None
    """The key of config.json that says whether in such layers values are the keys, as these were
    before their norm and rotation."""
    sharing_layers: str | None = None
    """The key of config.json for how many of the last layers read the keys and values of the last
    layer before them that sees as much."""
    doubled_sharing: str | None = None
    """The key that says whether the feed-forwards of those layers are twice as wide."""
    layer_scale: str | None = None
    """The number of each layer by which the residual stream is multiplied at its end."""
    layer_inputs: LayerInputRecord | None = None
    qkv_bias: str | bool = False
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    intermediate: str = "intermediate_size"
    """The width of dense feed-forwards."""
    gated: bool = True
    single: bool = False
    """Whether each layer is one block, see `single.py`."""
    inner: Callable[[Config], int] | None = None
    """The width of feed-forwards, where it is not `intermediate` as it stands."""
    activation: str = "hidden_act"
    clamped_swiglu: Mapping[str, float] = field(default_factory=dict)
    """Keys of config.json for the constants of the activation "clamped_swiglu", with the values
    that it has. Where there are some, it is the activation, whatever `activation` says."""
    positions: str | None = None
    """The table of learned positions. A text's first is row 0, or where `positions_after` names a
    key of config.json, the one after the row that it gives (RoBERTa)."""
    positions_after: str | None = None
    types: str | None = None
    embedding_norm: str | None = None
    embedding_scale: str | None = None
    embedding_scale_root: bool = False
    attention_scale: str | float | None = None
    """A key of config.json, or the scale itself."""
    attention_scale_root: bool = False
    residual_scale: str | None = None
    residual_scale_by_depth: bool = False
    """Whether it is divided by the root of the number of layers."""
    logits_multiplier: str | None = None
    logits_divisor: str | None = None
    logits_divisor_of_width: bool = False
    """Whether logits are divided by how many times the hidden size is `config[logits_divisor]`."""
    attention_softcap: str | None = None
    sinks: str | None = None
    """The vector of scores beside those of the keys in an attention's softmax, one for each query
    head."""
    final_softcap: str | None = None
    passes: str | None = None
    """The key of config.json that says how often the layers between the first and the last one run.
    `num_hidden_layers` counts each of them once."""
    routers: str = "routers."
    """By which rows take each pass but the first, counted from 0: a weight (1, D) and a bias."""
    layer_types: bool = False
    slides: SlidingRule = no_layer
    window_switch: str | None = None
    rotates: SlidingRule = rotated_always
    partial_rotary: bool = False
    neighbours: bool = False
    """Whether the rotary embedding pairs element 2 i of a head with 2 i + 1, and not with one half
    a head away. Rows of queries and keys are put in order when they are loaded."""
    sections: bool = False
    """Whether parts of a head are rotated by an image's rows and columns. Where there is only text,
    all parts are rotated by the same position."""
    local_theta: str | None = None
    unscaled_windows: bool = False
    """Whether layers that see a window leave the scaling of the rotary embedding out."""
    stretched_base: str | None = None
    """The key among those of a dynamic rotary embedding that stretches its base for texts of any
    length: by its value to the power d / (d - 2), d the rotated elements."""
    query_growth: str | None = None
    """The key among those of the rotary embedding that lets queries grow with their position
    (`Rope.growth`)."""
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    convolution: ConvolutionRecord | None = None
    delta: DeltaRecord | None = None
    state_space: StateSpaceRecord | None = None
    gru: GruRecord | None = None
    linear: LinearRecord | None = None
    usual: Callable[[Config], Config] | None = None
    """What config.json says in other forms, in the keys that are usual."""
    up_first: bool = False
    """Whether a stored projection of gates and ups has the rows of ups first."""
    multipliers: MultiplierRecord | None = None
    latent: LatentRecord | None = None
    ternary: bool = False
    """Whether all matrices but the table of embeddings are ternary, and inputs have 8 bits, as
    BitNet's, though no file says so."""
    output_gates: bool = False
    """Whether the rows of queries are, head by head, followed by those of a gate of what attention
    gives."""
    experts: ExpertRecord | None = None
    causal: bool = True
    bidirectional_switch: str | None = None
    """The key of config.json that lets rows see what follows them."""
    of_images: Mapping[str, str] = field(default_factory=dict)
    """Values of keys of config.json that change nothing where there is only text."""
    pooling: How | None = None
    """How hidden states are pooled where no file says it; `config[pooling_key]` where that is
    set."""
    pooling_key: str | None = None
    pooled: tuple[PooledRecord, ...] = ()
    """The head of a classifier."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are of no use to a model of text."""
    unused: tuple[str, ...] = ()
    """The same, behind a prefix or none, of tensors that nobody need be told of. `{n}` stands for
    the number of layers: such a layer is a block that drafts."""
