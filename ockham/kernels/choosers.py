"""What it takes to choose blocks of keys by a query, for each chooser of csrc/choosers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ockham.core.choices import Choice
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.layout import GroupLayout

SUMMARY_KEYS = 16
"""Keys of one summary."""
ROUNDS = 4
"""In which keys change sides while they are ordered by likeness (csrc/state/alike.cpp)."""


LOOKUPS = "lookups"
"""The chooser that has a codebook of each head."""


class ChooserCost(msgspec.Struct, frozen=True):
    """Of heads of so many elements, padded to 16: the bytes of the summary of 16 keys, and the
    FLOPs of one query head that is scored with it."""

    summary_bytes: Callable[[int], int]
    flops: Callable[[int], int]


CHOOSERS = {
    "bounds": ChooserCost(lambda width: 4 * width, lambda width: 4 * width),
    "codes": ChooserCost(lambda width: 4 * width + 64, lambda width: 2 * SUMMARY_KEYS * width),
    LOOKUPS: ChooserCost(lambda width: SUMMARY_KEYS, lambda width: SUMMARY_KEYS),
    "means": ChooserCost(lambda width: -(-2 * width // 64) * 64, lambda width: 2 * width),
}
"""By name."""


def padded(head_dim: int) -> int:
    """The elements of a stored key with those that pad it."""
    return -(-head_dim // 16) * 16


def summary_bytes(chooser: str, head_dim: int) -> int:
    """Bytes of the summary of 16 keys of one head; 0 where rows choose without any."""
    cost = CHOOSERS.get(chooser)
    return 0 if cost is None else cost.summary_bytes(padded(head_dim))


def book_bytes(chooser: str, head_dim: int) -> int:
    """Bytes that a query head's scoring reads of a codebook of one head beside the summaries: 256
    centroids in bf16, which take a FLOP a byte and query head, as codes do."""
    return 2 * 256 * (-(-head_dim // 32) * 32) if chooser == LOOKUPS else 0


def choosing_flops(chooser: str, head_dim: int, nbytes: int, query_heads: int) -> int:
    """FLOPs of so many query heads that are scored with summaries of `nbytes` bytes; 0 where rows
    choose without any."""
    cost, width = CHOOSERS.get(chooser), padded(head_dim)
    return (
        0 if cost is None else nbytes // cost.summary_bytes(width) * query_heads * cost.flops(width)
    )


def summaries_bytes(layouts: Sequence[GroupLayout], choices: Sequence[Choice | None]) -> int:
    """The memory of the summaries of whole pools, from which the layers of each group choose as
    `choices` say."""
    return sum(
        sum(choice.layers)
        * layout.spec.uniform.heads
        * -(-layout.pages * layout.page_tokens // SUMMARY_KEYS)
        * summary_bytes(choice.chooser, layout.spec.uniform.width)
        for layout, choice in zip(layouts, choices, strict=True)
        if choice is not None
    )


def held_bytes(
    layouts: Sequence[GroupLayout], choices: Sequence[Choice | None], longest: int
) -> int:
    """The most memory of what is held of choices for other rows (`Choice.every`), in whole pools
    with texts of so many tokens: a bit for each block (csrc/ops/choosing.cpp)."""
    choice_bytes = 8 * -(-longest // (64 * BLOCK_KEYS))
    return sum(
        sum(choice.layers)
        * layout.spec.uniform.heads
        * -(-layout.pages * layout.page_tokens * choice_bytes // choice.every)
        for layout, choice in zip(layouts, choices, strict=True)
        if choice is not None and choice.every > 1
    )


def alike_flops(keys: int, head_dim: int) -> int:
    """FLOPs, at most, of ordering so many keys of one head by likeness (`Planes.alike`): in each
    round of each level a key is added to a mean, and multiplied with a direction."""
    levels = max(0, (keys - 1) // SUMMARY_KEYS).bit_length()
    return levels * ROUNDS * keys * 3 * padded(head_dim)
