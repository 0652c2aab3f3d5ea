"""Mixtures of experts: their sizes, as config.json gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ockham.core.errors import ModelError
from ockham.model.program.architectures import Architecture
from ockham.model.program.unequal import expert_widths
from ockham.model.program.values import Values


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """A mixture of experts in the layers `layers`; `shared` is the shared expert's width or 0."""

    layers: tuple[int, ...]
    count: int
    per_token: int
    intermediate_size: int
    normalise: bool
    shared: int
    bias: bool = False
    corrected: bool = False
    """Whether something is added to weights where experts are chosen."""
    sigmoid: bool = False
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    widths: tuple[tuple[int, ...], ...] | None = None
    """The width of each expert of each of `layers`, where they are not all `intermediate_size`."""


def read_experts(architecture: Architecture, values: Values, layers: int) -> ExpertSizes | None:
    record, config = architecture.experts, values.config
    if record is None or (record.optional and not any(map(config.get, record.count))):
        return None
    if record.switch is not None and not values.flag(record.switch):
        return None
    key = next((key for key in record.count if config.get(key)), record.count[0])
    count, per_token = values.size(key), values.size("num_experts_per_tok")
    if per_token > count:
        raise ModelError(
            f"num_experts_per_tok ({per_token}) of config.json exceeds {key} ({count})."
        )
    shared = record.shared_intermediate
    own = tuple(i for i in range(layers) if record.layers(config, i))
    groups = values.size(record.groups) if record.groups and config.get(record.groups) else 1
    if record.grouped_where is not None:
        key_of_rule, rule = record.grouped_where
        groups = groups if config.get(key_of_rule) == rule else 1
    kept = values.size(record.kept_groups) if groups > 1 else 1
    if count % groups or kept > groups or per_token > kept * (count // groups):
        raise ModelError(
            f"config.json lets {per_token} experts be chosen in {kept} of {groups} groups of "
            f"{count} experts, which does not come out even."
        )
    shares = [key for key in (shared, record.shared_count) if key is not None]
    alone = not all(config.get(key) for key in shares)
    return ExpertSizes(
        layers=own,
        count=count,
        per_token=per_token,
        intermediate_size=values.size(record.intermediate),
        normalise=values.flag(record.normalise),
        shared=0 if alone or not shares else math.prod(map(values.size, shares)),
        bias=values.flag(record.bias),
        corrected=record.correction is not None
        and (record.correction_switch is None or values.flag(record.correction_switch)),
        sigmoid=record.sigmoid,
        scale=values.number(record.scale, 1.0),
        groups=groups,
        kept_groups=kept,
        group_best=min(record.group_best, count // groups) if groups > 1 else 1,
        widths=expert_widths(values, len(own), count),
    )
