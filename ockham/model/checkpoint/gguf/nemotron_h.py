"""What the metadata of Nemotron-H's files say in a way of their own, as its config.json has it.

Each layer is one block. The metadata say of each how many key-value heads it has and how wide its
feed-forward is, 0 where it has none; which block it is, its tensors say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.program.single import ATTENTION, DENSE, EXPERTS, RECURRENT

_TOLD_BY = {
    "ssm_in": RECURRENT,
    "attn_q": ATTENTION,
    "attn_qkv": ATTENTION,
    "ffn_gate_inp": EXPERTS,
    "ffn_up": DENSE,
}
"""A tensor of a layer -> what its block is."""


def read_nemotron_h(
    given: Callable[[str], Any], shapes: Mapping[str, tuple[int, ...]], factors: list[float]
) -> dict[str, Any]:
    """The values of config.json. Raises ModelError for what is not supported."""
    blocks, further = given("block_count"), given("nextn_predict_layers") or 0
    kinds = [_kind(layer, shapes) for layer in range(blocks - further)]
    config: dict[str, Any] = {
        "layer_types": kinds,
        "num_key_value_heads": _one("attention.head_count_kv", given, kinds, ATTENTION),
        "intermediate_size": _one("feed_forward_length", given, kinds, DENSE),
    }
    if EXPERTS in kinds:
        config |= {
            "n_routed_experts": given("expert_count"),
            "n_shared_experts": given("expert_shared_count") or 0,
            "moe_shared_expert_intermediate_size": given("expert_shared_feed_forward_length") or 0,
            "moe_latent_size": given("moe_latent_size"),
        }
    return config


def _kind(layer: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name, kind in _TOLD_BY.items():
        if f"blk.{layer}.{name}.weight" in shapes:
            return kind
    raise ModelError(
        f"its layer {layer} has none of the tensors {', '.join(_TOLD_BY)}, which tell what its "
        "block is."
    )


def _one(key: str, given: Callable[[str], Any], kinds: list[str], kind: str) -> int:
    """The value of a key that layers of a kind have in common; 1 where no layer is of it."""
    value = given(key)
    every = value if isinstance(value, list) else [value] * len(kinds)
    if len(every) < len(kinds):
        raise ModelError(f"its {key} has {len(every)} entries for {len(kinds)} layers.")
    own = {each for each, found in zip(every, kinds, strict=False) if found == kind} or {1}
    if len(own) > 1 or not all(type(each) is int and each > 0 for each in own):
        raise ModelError(
            f"its {key} is {shown(value)}; one positive number for all layers that have any is "
            "supported."
        )
    return int(own.pop())
