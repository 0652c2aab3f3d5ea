"""What layers of one model have unlike each other: heads, the layer whose keys they read, widths,
and what each is given of a token."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.architectures import Architecture
from ockham.model.program.values import Values

PER_LAYER = "per_layer_config"
"""The key of config.json for what single layers have in the place of the model's own values, as
transformers 5.23 writes it."""


def head_sizes(
    architecture: Architecture,
    values: Values,
    sliding: Sequence[bool],
    usual: tuple[int, int],
    heads: int,
) -> tuple[tuple[int, int], ...]:
    """Each layer's key-value heads, and the size of its heads."""
    if architecture.whole_head_dim is None:
        return (usual,) * len(sliding)
    if values.config.get(PER_LAYER) is not None:
        return _stated_sizes(values, len(sliding), usual, heads)
    kv_heads = usual[0]
    fewer, switch = architecture.whole_kv_heads, architecture.values_are_keys
    if fewer is not None and switch is not None and values.flag(switch):
        kv_heads = values.size(fewer, kv_heads)
    if heads % kv_heads:
        raise ModelError(
            f"{values.spelling.of('num_attention_heads')} ({heads}) is not a multiple of "
            f"{values.spelling.of(str(fewer))} ({kv_heads})."
        )
    whole = kv_heads, values.size(architecture.whole_head_dim)
    return tuple(usual if slides else whole for slides in sliding)


def _stated_sizes(
    values: Values, layers: int, usual: tuple[int, int], heads: int
) -> tuple[tuple[int, int], ...]:
    """The same where config.json says what is unlike the rest layer by layer."""
    given = values.config[PER_LAYER]
    known = ("num_key_value_heads", "head_dim")
    places = {str(layer) for layer in range(layers)}
    if not isinstance(given, dict) or not all(
        str(layer) in places and isinstance(own, dict) and not own.keys() - set(known)
        for layer, own in given.items()
    ):
        raise ModelError(
            f"{values.spelling.of(PER_LAYER)} must give some of the {layers} layers numbers for "
            f"{' and '.join(known)}, not {shown(given)}."
        )
    found = [usual] * layers
    for layer, own in given.items():
        sizes = [own.get(key, default) for key, default in zip(known, usual, strict=True)]
        kv_heads, head_dim = (values.whole(PER_LAYER, size) for size in sizes)
        if heads % kv_heads:
            raise ModelError(
                f"{values.spelling.of('num_attention_heads')} ({heads}) is not a multiple of the "
                f"{kv_heads} key-value heads of layer {layer}."
            )
        found[int(layer)] = (kv_heads, head_dim)
    return tuple(found)


def read_by_layers(
    architecture: Architecture, values: Values, sliding: Sequence[bool]
) -> tuple[int, ...] | None:
    """The layer whose keys and values each layer reads; None where that is its own."""
    key = architecture.sharing_layers
    if key is None or not values.config.get(key):
        return None
    own = len(sliding) - values.size(key)
    found = list(range(len(sliding)))
    for layer in range(max(own, 0), len(sliding)):
        before = [i for i in range(own) if sliding[i] == sliding[layer]]
        if not before:
            raise ModelError(
                f"{values.spelling.of(key)} is {values.config[key]}: of {len(sliding)} layers none "
                f"is left whose keys and values layer {layer} could read."
            )
        found[layer] = before[-1]
    return tuple(found)


def doubled_widths(
    architecture: Architecture, values: Values, reads: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The width of each feed-forward where those of layers that read others' keys are doubled."""
    key = architecture.doubled_sharing
    if reads is None or key is None or not values.flag(key):
        return None
    inner = inner_width(architecture, values)
    return tuple(inner if own == layer else 2 * inner for layer, own in enumerate(reads))


def read_layer_inputs(architecture: Architecture, values: Values) -> int:
    """How many values each layer is given of a token beside the residual stream."""
    record = architecture.layer_inputs
    if record is None or not values.config.get(record.width):
        return 0
    return values.size(record.width)


def layer_input_rows(architecture: Architecture, values: Values) -> int:
    assert architecture.layer_inputs is not None
    key = architecture.layer_inputs.rows
    rows, vocabulary = values.size(key), values.size("vocab_size")
    if rows < vocabulary:
        raise ModelError(
            f"{values.spelling.of(key)} is {rows}, fewer than the {vocabulary} tokens of "
            f"{values.spelling.of('vocab_size')}."
        )
    return rows


def inner_width(architecture: Architecture, values: Values) -> int:
    """The width of feed-forwards."""
    if architecture.inner is None:
        return values.size(architecture.intermediate)
    return values.whole(architecture.intermediate, architecture.inner(values.config))
