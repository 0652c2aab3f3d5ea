"""The options that drafters share which learn from one request for another."""

from __future__ import annotations

import msgspec

from ockham.core.errors import ConfigError

LEAST_LEARNED_BYTES = 1 << 20


class LearningOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`learned_bytes` bounds the memory of what is learned, of all tenants together."""

    learned_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if self.learned_bytes < LEAST_LEARNED_BYTES:
            raise ConfigError(
                f"learned_bytes must be at least {LEAST_LEARNED_BYTES}, got {self.learned_bytes}."
            )
