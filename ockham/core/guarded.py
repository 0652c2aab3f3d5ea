"""What the quality guard has found, as it is told: sums, and no text."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["on", "off", "probation"]


class Guarded(msgspec.Struct, kw_only=True):
    """What was found of one use of approximate techniques: those that requests of a `workload` used
    together, with the same `settings`.

    `requests` asked for them, and `left_out` of these were served without. Of `texts` that were
    scored again, the exact model gave the same token at `agreed` of `positions`. Where the
    divergence from it was taken, at `kl_positions`, it sums to `kl_nats`. `evidence` is how near
    the test is to switching it off, from 0 to 1 (in probation: to letting it come back).
    """

    techniques: tuple[str, ...]
    settings: str
    workload: str
    state: State = "on"
    requests: int = 0
    left_out: int = 0
    texts: int = 0
    positions: int = 0
    agreed: int = 0
    kl_positions: int = 0
    kl_nats: float = 0.0
    evidence: float = 0.0

    @property
    def agreement(self) -> float | None:
        """The share of positions; None before the first."""
        return self.agreed / self.positions if self.positions else None

    @property
    def kl(self) -> float | None:
        """Nats a position; None before the first."""
        return self.kl_nats / self.kl_positions if self.kl_positions else None


class GuardEvent(msgspec.Struct, kw_only=True):
    """Something that happened to a use. `time_s` is of the epoch."""

    time_s: float
    event: Literal["off", "probation", "on"]
    techniques: tuple[str, ...]
    workload: str
    reason: str


class GuardStats(msgspec.Struct, kw_only=True):
    """The guard's figures so far.

    `shadowed` are requests whose text was scored again, `queued` those that wait for it, `dropped`
    those that were chosen and are not scored: there was no room, or what they need is gone.
    `apart` are requests with approximate techniques that cannot be scored again (see the docs).
    `rows` of the engine's were computed for it, beside `traffic_rows` of everything else.
    """

    share: float = 0.0
    floor: str = ""
    shadowed: int = 0
    queued: int = 0
    dropped: int = 0
    apart: int = 0
    rows: int = 0
    traffic_rows: int = 0
    uses: list[Guarded] = []
    events: list[GuardEvent] = []
    """The latest ones, the oldest first."""
