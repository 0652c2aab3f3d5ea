"""The tiers below an engine's pool, as its settings ask for them, and how fast it computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ockham.cache.state import State
from ockham.cache.store.disk import DiskStore, StoreError
from ockham.cache.store.memory import MemoryTier
from ockham.cache.store.names import Identity
from ockham.cache.store.tiers import Tiers
from ockham.core.config import EngineConfig
from ockham.core.cost import ModelCost
from ockham.core.errors import ConfigError
from ockham.engine.part import Part
from ockham.model.loading import LoadedModel

log = logging.getLogger("ockham.engine")

LEAST_ROWS = 32
"""Steps of fewer rows say nothing of how fast prompts are computed."""


class Pace:
    """How fast this engine computes prompts, by its own latest steps."""

    def __init__(self, cost: ModelCost) -> None:
        self._cost = cost
        self._s_per_flop: float | None = None

    def note(self, parts: Sequence[Part], seconds: float) -> None:
        """A step took so long."""
        if sum(part.rows for part in parts) < LEAST_ROWS:
            return
        flops = sum(self._cost.row_flops(p.start + 1, p.rows, p.head_rows) for p in parts)
        before = self._s_per_flop
        now = seconds / max(1, flops)
        self._s_per_flop = now if before is None else (now + before) / 2

    def seconds(self, first: int, tokens: int) -> float | None:
        """What `tokens` rows from cell `first` on would take; None before anything was computed."""
        if self._s_per_flop is None:
            return None
        return self._s_per_flop * self._cost.row_flops(first + 1, tokens, 0)


def open_tiers(
    config: EngineConfig,
    model: LoadedModel,
    state: State,
    seconds: Callable[[int, int], float | None],
) -> Tiers | None:
    """The tiers that the settings name, or None. A store that cannot be used is a warning."""
    if config.kv_store is None and not config.swap_bytes:
        return None
    planes = state.planes
    page_bytes = tuple(planes.stored_page_bytes(group) for group in range(len(state.groups)))
    identity = Identity(
        model.numerics_id, planes.layout, state.page_tokens, page_bytes, state.apart
    )
    least = identity.payload_bytes + identity.checkpoint_bytes
    if config.swap_bytes and config.swap_bytes < least:
        what = "one page and its checkpoint" if identity.apart else "one page"
        raise ConfigError(
            f"swap_space={config.swap_space:g} GiB has no room for {what} of {least} bytes; raise "
            "it."
        )
    memory = MemoryTier(config.swap_bytes) if config.swap_bytes else None
    disk = None
    if config.kv_store is not None:
        try:
            disk = DiskStore(Path(config.kv_store).expanduser(), config.kv_store_bytes, identity)
        except RuntimeError:
            log.warning(
                "the KV store %s cannot be used: there is no such home directory. Serving goes on "
                "without it.",
                config.kv_store,
            )
        except StoreError as error:
            log.warning("%s Serving goes on without it.", error)
    if memory is None and disk is None:
        return None
    layers = [len(group.layers) for group in state.groups]
    return Tiers(state, planes, layers, identity, memory, disk, seconds)
