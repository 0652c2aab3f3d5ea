"""Based: linear attention, attention in a window, and short convolutions in turns."""

from __future__ import annotations

import math
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.record import (
    Architecture,
    Config,
    ConvolutionRecord,
    LinearRecord,
    every_layer,
)
from ockham.model.program.values import MOST_LAYERS

_KINDS = {
    "BaseConv": "conv",
    "LinearAttention": "linear_attention",
    "SlidingAttention": "sliding_attention",
}
"""The class that a mixer's `_target_` names -> the kind of its layers."""
_ONLY: dict[str, tuple[Any, str]] = {
    "rms_norm": (True, "its norms are LayerNorms"),
    "prenorm": (True, "its norms stand behind the branches"),
    "parallel_block": (False, "its branches stand side by side"),
    "scale_attn_weights": (True, "its scores have no scale"),
    "scale_attn_by_inverse_layer_idx": (False, "its scores are scaled by layer"),
    "fixed_decay": (False, "its linear attention decays"),
    "word_embed_proj_dim": (None, "its embeddings are projected"),
    "lm_head_bias": (False, "its head has a bias"),
    "mlp_type": ("base", "its feed-forwards are of another kind"),
    "rotary_emb_scale_base": (None, "its rotary embedding is scaled"),
    "rotary_emb_interleaved": (False, "its rotary pairs are neighbours"),
}
"""Keys of config.json, the one value that is supported, and what another says."""
_DEFAULTS = {"rms_norm": False}
"""What the published code takes where a key is missing, and that is not the value above."""


def _usual(config: Config) -> Config:
    """The nested mixers of the published config.json as kinds of layers and flat sizes."""
    for key, (only, why) in _ONLY.items():
        if config.get(key, _DEFAULTS.get(key, only)) != only:
            raise ModelError(f"config.json sets {key}: {why}, which is not supported.")
    if config.get("n_positions"):
        raise ModelError("config.json sets n_positions: learned positions are not supported.")
    for key in ("mlp_fc1_bias", "mlp_fc2_bias"):
        if config.get(key, True):
            raise ModelError(
                f"{key} of config.json must be false: feed-forwards with biases are not supported."
            )
    size, layers = _size(config, "n_embd"), _size(config, "n_layer")
    if layers > MOST_LAYERS:
        raise ModelError(
            f"n_layer of config.json is {shown(layers)}; models of up to {MOST_LAYERS} are "
            "supported."
        )
    fraction = config.get("rotary_emb_fraction")
    if isinstance(fraction, bool) or fraction not in (None, 0, 1):
        raise ModelError(
            f"rotary_emb_fraction of config.json is {shown(fraction)}; only 0 and 1 are supported."
        )
    places = {
        layer: name
        for name in ("alt_mixer", "alt_mixer_2")  # the second goes before the first
        for layer in _layers_of(config, f"{name}_layers", layers)
    }
    names = [places.get(layer, "mixer") for layer in range(layers)]
    mixers = {name: _mixer(config, name) for name in dict.fromkeys(names)}
    kinds = [mixers[name] for name in names]
    own = dict(kinds)
    convolution = own.get("conv", {})
    linear = own.get("linear_attention", {})
    heads, inner = _size(linear, "num_heads", 16), _size(config, "n_inner", 8 * size // 3)
    to = _size(config, "pad_vocab_size_multiple", 1)
    window = _size(own.get("sliding_attention", {}), "window_size", 128)
    return {
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": _size(config, "n_head"),
        "num_key_value_heads": _size(config, "n_head_kv", _size(config, "n_head")),
        "intermediate_size": math.ceil(inner / 256) * 256,
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "hidden_act": {"swiglu": "silu", "geglu": "gelu"}.get(
            str(config.get("activation_function")), str(config.get("activation_function"))
        ),
        "vocab_size": math.ceil(_size(config, "vocab_size") / to) * to,
        "rope_theta": config.get("rotary_emb_base", 10_000.0),
        "layer_types": [kind for kind, _ in kinds],
        "sliding_window": window // 2 + 1,
        "max_position_embeddings": max(_size(each, "l_max", 2048) for each in own.values()),
        "conv_L_cache": _size(convolution, "kernel_size", 3),
        "conv_width": _size(convolution, "expand_proj", 2) * size // 2,
        "conv_bias": bool(convolution.get("use_bias", True)),
        "linear_num_heads": heads,
        "linear_feature_dim": _size(linear, "feature_dim", 16),
        "linear_head_dim": _size(linear, "head_dim", size // heads),
    }


def _size(stated: Config, key: str, default: int | None = None) -> int:
    """A positive integer of config.json, or of a mixer in it."""
    found = stated.get(key)
    found = default if found is None else found
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ModelError(f"{key} of config.json must be a positive integer, not {shown(found)}.")
    return found


def _layers_of(config: Config, key: str, layers: int) -> list[int]:
    found = config.get(key) or []
    if not isinstance(found, list) or not all(
        type(layer) is int and 0 <= layer < layers for layer in found
    ):
        raise ModelError(
            f"{key} of config.json must be a list of layers, of 0 to {layers - 1}, not "
            f"{shown(found)}."
        )
    return found


def _mixer(config: Config, name: str) -> tuple[str, dict[str, Any]]:
    """The kind of a mixer's layers, and what it says."""
    stated = config.get(name)
    own: dict[str, Any] = stated if isinstance(stated, dict) else {}
    kind = _KINDS.get(str(own.get("_target_")).rpartition(".")[2])
    if kind is None:
        raise ModelError(
            f"{name} of config.json is {shown(stated)}; its _target_ must end in one of "
            f"{', '.join(_KINDS)}."
        )
    features = own.get("feature_map")
    mapped = str(features.get("_target_")) if isinstance(features, dict) else ""
    if kind == "linear_attention" and not mapped.endswith("TaylorExp"):
        raise ModelError(
            f"the feature map of {name} of config.json is {shown(features)}; only TaylorExp is "
            "supported."
        )
    return kind, own


def _rotates(config: Config, layer: int) -> bool:
    return bool(config.get("rotary_emb_fraction"))


_BASED = Architecture(
    "GPTLMHeadModel",
    prefixes=("transformer.", "model.transformer."),
    table="embeddings.word_embeddings",
    usual=_usual,
    qkv=("mixer.Wqkv",),
    attention_output="mixer.out_proj",
    gate_up=("mlp.fc1",),
    up_first=True,
    down="mlp.fc2",
    attention_norm="norm1",
    mlp_norm="norm2",
    final_norm="ln_f",
    qkv_bias="qkv_proj_bias",
    output_bias="out_proj_bias",
    slides=every_layer,
    rotates=_rotates,
    convolution=ConvolutionRecord(
        inputs="mixer.in_proj",
        weight="mixer.conv.conv",
        other_weight="mixer.conv1.conv",
        output="mixer.out_proj",
        width="conv_width",
        activated=True,
    ),
    linear=LinearRecord(),
    defaults={
        "vocab_size": 50257,
        "qkv_proj_bias": True,
        "out_proj_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
)

RECORDS = (_BASED,)
