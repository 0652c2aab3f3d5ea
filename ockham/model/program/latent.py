"""Multi-head latent attention: its sizes, as config.json gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ockham.core.errors import ModelError
from ockham.model.program.architectures import Architecture
from ockham.model.program.rope import RopeVariant
from ockham.model.program.values import Values


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """Multi-head latent attention: of what is kept of a token, the latent and the elements that are
    rotated; of each head's query the `plain` elements beside those, and of its value the
    elements."""

    query_rank: int
    """The width that queries are projected to first; 0 where they are projected at once."""
    rank: int
    rotated: int
    plain: int
    value: int
    neighbours: bool
    """Whether rotary pairs are neighbours in the checkpoint."""
    norm_eps: float


def read_latent(architecture: Architecture, values: Values) -> LatentSizes | None:
    record = architecture.latent
    if record is None:
        return None
    if values.config.get("attention_bias"):
        raise ModelError("multi-head latent attention with biases is not supported.")
    return LatentSizes(
        values.size(record.query_rank) if values.config.get(record.query_rank) else 0,
        values.size(record.rank),
        values.size(record.rotated),
        values.size(record.plain),
        values.size(record.value),
        values.flag(record.neighbours),
        record.norm_eps,
    )


def latent_scale(latent: LatentSizes, rope: RopeVariant | None) -> float:
    """Of scores: by the width of queries before they are absorbed, and what YaRN adds for all
    dimensions."""
    scale = 1.0 / math.sqrt(latent.rotated + latent.plain)
    return scale if rope is None else scale * rope.of_all_dimensions**2
