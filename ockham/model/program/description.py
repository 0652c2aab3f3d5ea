"""A model as its config.json describes it: sizes, layers and constants, but no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.layout import StateSpec
from ockham.model.files.untrusted import read_object
from ockham.model.program.architectures import ARCHITECTURES, Architecture
from ockham.model.program.pooling import PoolingDescription
from ockham.model.program.rope import RopeVariant, read_rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
"""config.json's name of an activation -> the operations' name."""

_REFUSED = {
    "use_bidirectional_attention": "only causal attention is supported",
    "clip_qkv": "clipped queries, keys and values are not supported",
    "dual_chunk_attention_config": "dual chunk attention is not supported; remove the key",
}
"""Keys of config.json that change the meaning of the model in a way that is not supported."""


MOST_SIZE = 2**31 - 1
"""Of any size or number: token ids and positions are 32-bit integers."""

_MOST = {
    "num_hidden_layers": 10_000,
    "head_dim": 1 << 16,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
}
"""Of what decides how much is written down before the weights are looked at."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that keep the same, and therefore share page tables."""

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None

    def spec(self, dtype: str) -> StateSpec:
        """What each of the layers keeps, stored as `dtype`."""
        return StateSpec.attention(self.kv_heads, self.head_dim, dtype, self.window)


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """A mixture of experts in the layers `layers`; `shared` is the shared expert's width or 0."""

    layers: tuple[int, ...]
    count: int
    per_token: int
    intermediate_size: int
    normalise: bool
    shared: int


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
    of a sequence must be in one step."""
    pooling: PoolingDescription | None = None
    """How a vector is made of hidden states; None where the checkpoint says nothing of it."""

    @property
    def generates(self) -> bool:
        """Whether the model has a head over its vocabulary."""
        return bool(self.architecture.heads)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers by window, in the order in which the windows first come."""
        windows = dict.fromkeys(self.windows)
        return tuple(
            LayerGroup(
                tuple(i for i, other in enumerate(self.windows) if other == window),
                self.kv_heads,
                self.head_dim,
                window,
            )
            for window in windows
        )

    def constants(self) -> dict[str, Any]:
        """What decides the arithmetic besides the weights, as plain values."""
        beside = ("architecture", "ropes", "eos_token_ids", "bos_token_id", "checkpoint_dtype")
        beside = (*beside, "pooling", *(("causal",) if self.causal else ()))
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in beside}
        experts = None if self.experts is None else asdict(self.experts)
        return {**values, "architecture": self.architecture.name, "experts": experts}

    def group_of(self, layer: int) -> int:
        """The number of the group that a layer belongs to."""
        return list(dict.fromkeys(self.windows)).index(self.windows[layer])


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
    stated = ", ".join(names[:5]) or f"none (model_type {shown(config.get('model_type'))})"
    raise ModelError(
        f"the architecture {stated} is not supported; supported are {', '.join(ARCHITECTURES)}."
    )


@dataclass(frozen=True, slots=True)
class Spelling:
    """How an error names a key of config.json: as it stands in `file`, which has other names for
    it where its values came from elsewhere."""

    file: str = "config.json"
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """E.g. "hidden_size of config.json"."""
        return f"{self.names.get(key, key)} of {self.file}"

    def lacks(self, key: str) -> str:
        """E.g. "config.json lacks 'hidden_size'"."""
        return f"{self.file} lacks {self.names.get(key, key)!r}"


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
    if architecture.text_config is not None:
        # What the outer part says of tokens and types holds for the whole.
        outer = {key: config[key] for key in _OUTER_KEYS if config.get(key) is not None}
        config = {**(config.get(architecture.text_config) or {}), **outer}
    return _describe(
        architecture, _Values({**architecture.defaults, **config}, architecture.name, spelling)
    )


_OUTER_KEYS = ("eos_token_id", "bos_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
"""What a multimodal config.json may say outside of its text part."""


class _Values:
    """A config's values with types checked, so that an error names the key and the value."""

    def __init__(self, config: Mapping[str, Any], architecture: str, spelling: Spelling) -> None:
        self.config = config
        self._architecture = architecture
        self.spelling = spelling

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer up to the limit of its kind."""
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.spelling.lacks(key)}, which {self._architecture} needs.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(
                f"{self.spelling.of(key)} must be a positive integer, not {shown(value)}."
            )
        most = _MOST.get(key, MOST_SIZE)
        if value > most:
            raise ModelError(
                f"{self.spelling.of(key)} is {shown(value)}; models of up to {most} are supported."
            )
        return value

    def number(self, key: str | None, default: float) -> float:
        """A finite positive number; the default where the key is None or left out."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str | None) -> float | None:
        value = None if key is None else self.config.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ModelError(
                f"{self.spelling.of(str(key))} must be a positive number, not {shown(value)}."
            )
        return float(value)

    def flag(self, key: str | bool) -> bool:
        """A boolean of the config, or `key` itself where it is one."""
        return key if isinstance(key, bool) else bool(self.config.get(key, False))

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i < MOST_SIZE for i in ids):
            raise ModelError(f"{self.spelling.of(key)} must be token ids, not {shown(value)}.")
        return tuple(ids)


def _describe(architecture: Architecture, values: _Values) -> ModelDescription:
    config = values.config
    for key, why in _REFUSED.items():
        if config.get(key):
            raise ModelError(f"{values.spelling.file} sets {key}: {why}.")
    layers, heads = values.size("num_hidden_layers"), values.size("num_attention_heads")
    hidden_size = values.size("hidden_size")
    kv_heads = values.size("num_key_value_heads", heads)
    head_dim = values.size("head_dim", hidden_size // heads)
    if heads % kv_heads:
        raise ModelError(
            f"{values.spelling.of('num_attention_heads')} ({heads}) is not a multiple of "
            f"{values.spelling.of('num_key_value_heads')} ({kv_heads})."
        )
    sliding = _sliding_layers(architecture, config, layers)
    window = values.size("sliding_window") if any(sliding) else None
    values.size("max_position_embeddings")
    ropes = {kind: read_rope(config, architecture, head_dim, kind) for kind in set(sliding)}
    positions = [rope.longest for rope in ropes.values() if rope is not None]
    longest = max(positions, default=values.size("max_position_embeddings"))
    if longest > MOST_SIZE:
        raise ModelError(
            f"the rotary embedding of {values.spelling.file} reaches {shown(longest)} positions; "
            f"at most {MOST_SIZE} are supported."
        )
    bos = values.token_ids("bos_token_id")
    return ModelDescription(
        architecture=architecture,
        vocab_size=values.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=values.size("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest,
        norm_eps=values.number("rms_norm_eps", 1e-6),
        activation=_activation(architecture, config),
        qkv_bias=values.flag(architecture.qkv_bias),
        output_bias=values.flag(architecture.output_bias),
        mlp_bias=values.flag(architecture.mlp_bias),
        embedding_scale=_root(
            values.number(architecture.embedding_scale, 1.0), architecture.embedding_scale_root
        ),
        attention_scale=_attention_scale(architecture, values, head_dim),
        residual_scale=values.number(architecture.residual_scale, 1.0),
        logits_scale=1.0 / values.number(architecture.logits_divisor, 1.0),
        attention_softcap=values.optional_number(architecture.attention_softcap),
        final_softcap=values.optional_number(architecture.final_softcap),
        tied_embeddings=values.flag("tie_word_embeddings"),
        windows=tuple(window if slides else None for slides in sliding),
        ropes=tuple(
            ropes[slides] if architecture.rotates(config, layer) else None
            for layer, slides in enumerate(sliding)
        ),
        experts=_experts(architecture, values, layers),
        eos_token_ids=values.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
        checkpoint_dtype=_dtype(config),
    )


def _dtype(config: Mapping[str, Any]) -> str | None:
    named = config.get("dtype") or config.get("torch_dtype")
    if named is not None and not isinstance(named, str):
        raise ModelError(f"the dtype of config.json must be a name, not {shown(named)}.")
    return named


def _root(value: float, take_root: bool) -> float:
    return math.sqrt(value) if take_root else value


def _attention_scale(architecture: Architecture, values: _Values, head_dim: int) -> float:
    if architecture.attention_scale is None:
        return 1.0 / math.sqrt(head_dim)
    scale = values.number(architecture.attention_scale, head_dim)
    return 1.0 / math.sqrt(scale) if architecture.attention_scale_root else scale


def _activation(architecture: Architecture, config: Mapping[str, Any]) -> str:
    # Early Gemma 2 configs say "hidden_act" only.
    name = config.get(architecture.activation) or config.get("hidden_act") or "silu"
    if name not in ACTIVATIONS:
        raise ModelError(
            f"the activation {shown(name)} is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


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


def _experts(architecture: Architecture, values: _Values, layers: int) -> ExpertSizes | None:
    record, config = architecture.experts, values.config
    if record is None:
        return None
    dense, every = set(config.get("mlp_only_layers") or ()), values.size("decoder_sparse_step", 1)
    key = next((key for key in record.count if config.get(key)), record.count[0])
    count, per_token = values.size(key), values.size("num_experts_per_tok")
    if per_token > count:
        raise ModelError(
            f"num_experts_per_tok ({per_token}) of config.json exceeds {key} ({count})."
        )
    shared = record.shared_intermediate
    return ExpertSizes(
        layers=tuple(i for i in range(layers) if i not in dense and (i + 1) % every == 0),
        count=count,
        per_token=per_token,
        intermediate_size=values.size(record.intermediate),
        normalise=values.flag(record.normalise),
        shared=0 if shared is None else values.size(shared),
    )
