"""What the metadata of Gemma 4's files say in a way of their own, as its config.json has it.

Heads have two sizes, and layers two numbers of key-value heads and, in small models, two widths of
feed-forwards. The converter writes the proportional rotary embedding as factors that divide the
frequencies: 1 for pairs that are rotated, and 1e30 for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown

BACKBONE = "backbone_hidden_size"
"""The key of config.json that says for a model of which width an assistant drafts."""
_STILL = 1e29
"""By what a frequency is divided that turns nothing, at least."""


def read_gemma4(
    given: Callable[[str], Any], shapes: Mapping[str, tuple[int, ...]], factors: list[float]
) -> dict[str, Any]:
    """The values of config.json. Raises ModelError for what is not supported."""
    layers = given("block_count")
    slides = given("attention.sliding_window_pattern")
    if not isinstance(slides, list) or len(slides) != layers or not layers:
        raise ModelError(
            f"its attention.sliding_window_pattern is {shown(slides)}; a truth for each of its "
            f"{shown(layers)} layers is needed."
        )
    kv_heads = _each("attention.head_count_kv", given("attention.head_count_kv"), layers)
    widths = _each("feed_forward_length", given("feed_forward_length"), layers)
    sharing = given("attention.shared_kv_layers") or 0
    own = layers - sharing
    whole = next((i for i, each in enumerate(slides) if not each), 0)
    local = next((i for i, each in enumerate(slides) if each), 0)
    same = (
        f"blk.{whole}.attn_v.weight" not in shapes and f"blk.{whole}.attn_qkv.weight" not in shapes
    )
    width = widths[0]
    config: dict[str, Any] = {
        "head_dim": given("attention.key_length_swa"),
        "global_head_dim": given("attention.key_length"),
        "num_key_value_heads": kv_heads[local],
        "num_global_key_value_heads": kv_heads[whole],
        "attention_k_eq_v": same,
        "num_kv_shared_layers": sharing,
        "intermediate_size": width,
        "use_double_wide_mlp": widths[-1] == 2 * width and 0 < own < layers,
        "hidden_size_per_layer_input": given("embedding_length_per_layer_input") or 0,
        "enable_moe_block": bool(given("expert_count")),
    }
    doubled = 1 + config["use_double_wide_mlp"]
    for layer in range(layers):
        heads = kv_heads[local] if slides[layer] else kv_heads[whole]
        if kv_heads[layer] != heads or widths[layer] != width * (1 if layer < own else doubled):
            raise ModelError(
                f"its layer {layer} has {kv_heads[layer]} key-value heads and a feed-forward of "
                f"{widths[layer]}; layers are supported that differ by whether they see a window, "
                "or share the keys of others."
            )
    if not same and kv_heads[local] != kv_heads[whole]:
        raise ModelError(
            "its layers have several numbers of key-value heads, and values of their own; that is "
            "not supported."
        )
    table = shapes.get("per_layer_token_embd.weight")
    if table is not None:
        config["vocab_size_per_layer_input"] = table[0]
    rotated, head_dim = given("rope.dimension_count_swa"), config["head_dim"]
    if rotated is not None and rotated != head_dim:
        raise ModelError(
            f"its rope.dimension_count_swa is {shown(rotated)}; only {shown(head_dim)}, the size "
            "of a head, is supported."
        )
    config["rope_parameters"] = {
        "sliding_attention": {"rope_theta": given("rope.freq_base_swa") or 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": given("rope.freq_base") or 1_000_000.0,
            "partial_rotary_factor": _rotated(factors),
        },
    }
    return config


def read_assistant(
    given: Callable[[str], Any], shapes: Mapping[str, tuple[int, ...]], factors: list[float]
) -> dict[str, Any]:
    """The values of an assistant's config.json, the outer ones among them. The converter leaves
    clusters of tokens out."""
    config = read_gemma4(given, shapes, factors)
    return {**config, "num_kv_shared_layers": 0, BACKBONE: given("embedding_length_out")}


def _each(key: str, value: Any, layers: int) -> list[int]:
    """A value of each layer, where one may be given for all."""
    every = value if isinstance(value, list) else [value] * layers
    if len(every) != layers or not all(type(each) is int and each > 0 for each in every):
        raise ModelError(
            f"its {key} is {shown(value)}; a positive number, or one for each of its {layers} "
            "layers, is needed."
        )
    return every


def _rotated(factors: list[float]) -> float:
    """Which share of pairs is rotated."""
    if not factors:
        return 0.25
    rotated = sum(each == 1.0 for each in factors)
    if (
        not rotated
        or factors[:rotated] != [1.0] * rotated
        or min(factors[rotated:], default=_STILL) < _STILL
    ):
        raise ModelError(
            "its rope_freqs are not those of a rotary embedding of the first pairs of a head; "
            "others are not supported for this architecture."
        )
    return rotated / len(factors)
