"""Layers of one block each, as Nemotron-H has them: what kind each is, as config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown

ATTENTION, RECURRENT, DENSE, EXPERTS = "full_attention", "linear_attention", "mlp", "moe"

_NAMES = {
    ATTENTION: ATTENTION,
    "attention": ATTENTION,
    "*": ATTENTION,
    RECURRENT: RECURRENT,
    "mamba": RECURRENT,
    "M": RECURRENT,
    DENSE: DENSE,
    "-": DENSE,
    EXPERTS: EXPERTS,
    "E": EXPERTS,
}
"""Names of kinds, and the letters of `hybrid_override_pattern`."""


def kinds_of(config: Mapping[str, Any], layers: int | None = None) -> list[str]:
    """The kind of each layer, of so many. Raises ModelError for others, and for too few or many."""
    keys = ("layers_block_type", "layer_types", "hybrid_override_pattern")
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    stated = config.get(key)
    if not isinstance(stated, list | str) or not stated:
        raise ModelError(f"{key} of config.json is {shown(stated)}, and no list of layers' kinds.")
    if layers is not None and len(stated) != layers:
        raise ModelError(f"{key} of config.json has {len(stated)} entries for {layers} layers.")
    for each in stated:
        if each not in _NAMES:
            raise ModelError(
                f"the layer type {shown(each)} is not supported; supported are {ATTENTION}, "
                f"{RECURRENT}, {DENSE} and {EXPERTS}."
            )
    return [_NAMES[each] for each in stated]


def has_experts(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer's block is a mixture."""
    return kinds_of(config)[layer] == EXPERTS


def of_kinds(config: Mapping[str, Any], layers: int, *kinds: str) -> tuple[int, ...]:
    """The layers of these kinds."""
    return tuple(i for i, kind in enumerate(kinds_of(config, layers)) if kind in kinds)
