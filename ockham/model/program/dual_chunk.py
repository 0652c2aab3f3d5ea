"""Dual chunk attention as config.json, or a user, asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ockham.core.numbers import shown
from ockham.core.visits import BLOCK_KEYS
from ockham.kernels.ops import DualChunk
from ockham.model.program.values import MOST_SIZE

KEYS = ("chunk_size", "local_size", "original_max_position_embeddings")


def read_dual_chunk(given: Mapping[str, Any], positions: int) -> DualChunk:
    """Dual chunk attention under vLLM's names, of a checkpoint made for so many positions:
    `chunk_size` (by default that many) is the farthest distance, `local_size` (a quarter of it) how
    far the true distance is kept, `original_max_position_embeddings` (0: never) the length from
    which scores are sharpened. What it says of sparse attention is left out.

    Raises ValueError with what is wrong, without a full stop.
    """

    def number(key: str, default: int, least: int) -> int:
        value = given.get(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= MOST_SIZE:
            raise ValueError(
                f"{key} must be a whole number from {least} to {MOST_SIZE}, not {shown(value)}"
            )
        return value

    reach = number("chunk_size", positions, 2)
    local = number("local_size", reach // 4 // BLOCK_KEYS * BLOCK_KEYS, 1)
    chunk = reach - local
    if chunk < BLOCK_KEYS or chunk % BLOCK_KEYS:
        raise ValueError(
            f"chunk_size less local_size ({reach} - {local} = {chunk}) must be a multiple of "
            f"{BLOCK_KEYS}"
        )
    return DualChunk(chunk, reach, number("original_max_position_embeddings", 0, 0))
