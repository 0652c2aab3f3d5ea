"""The engine's setting of rotary embeddings: what a checkpoint says, scaled to longer texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ockham.core.errors import ConfigError, ModelError
from ockham.core.numbers import shown
from ockham.model.program.description import ModelDescription
from ockham.model.program.dual_chunk import KEYS, read_dual_chunk
from ockham.model.program.rope import (
    GROWTH,
    KINDS,
    SCALED_FROM_ORIGINAL,
    RopeVariant,
    check_parameters,
    is_positive,
)
from ockham.model.program.values import MOST_SIZE

DUAL_CHUNK = "dual_chunk"
PROPORTIONAL = "proportional"
"""A model's own kind, which no setting puts in the place of another."""


def rescale(
    description: ModelDescription, setting: str | Mapping[str, Any] | None
) -> ModelDescription:
    """A model whose layers without a window have their rotary embeddings scaled. The setting is a
    mapping, or JSON, with the keys of config.json's `rope_scaling`; None changes nothing. Raises
    ConfigError for a setting that is wrong, or a model that it does not fit."""
    if setting is None:
        return description
    given = _parsed(setting)
    scaled = [
        variant is not None and window is None
        for variant, window in zip(description.ropes, description.windows, strict=True)
    ]
    if not any(scaled) or not description.causal:
        raise ConfigError(
            f"rope_scaling: {description.architecture.name} has no layer that sees a whole text "
            "before it by rotated positions; leave it out."
        )
    variants = tuple(
        rescaled(variant, given) if scales and variant is not None else variant
        for variant, scales in zip(description.ropes, scaled, strict=True)
    )
    longest = max(variant.longest for variant in variants if variant is not None)
    if longest > MOST_SIZE:
        raise ConfigError(
            f"rope_scaling: it reaches {longest} positions; at most {MOST_SIZE} are supported."
        )
    return replace(description, ropes=variants, max_position_embeddings=longest)


def _parsed(setting: str | Mapping[str, Any]) -> Mapping[str, Any]:
    given: Any = setting
    if isinstance(setting, str):
        try:
            given = json.loads(setting)
        except ValueError as error:
            raise ConfigError(f"rope_scaling is no valid JSON ({error}).") from None
    if not isinstance(given, Mapping):
        raise ConfigError(f"rope_scaling must be an object, not {shown(given)}.")
    return given


def rescaled(variant: RopeVariant, setting: Mapping[str, Any]) -> RopeVariant:
    """A checkpoint's variant as the engine's setting changes it.

    `rope_type` names what takes its place, with the parameters of config.json; "default" with a
    `factor` goes on unscaled, so many times as far. Or it is "dual_chunk", with the keys of
    `read_dual_chunk` and a `factor` (4 by default) of how much longer texts may be, and the
    frequencies stay. Raises ConfigError with what is wrong.
    """
    parameters = dict(setting)
    kind = str(parameters.pop("rope_type", parameters.pop("type", None)) or "")
    if kind != DUAL_CHUNK:
        known = [each for each in KINDS if each != PROPORTIONAL]
        if kind not in known:
            raise ConfigError(
                f"rope_scaling: the rotary embedding {shown(kind)} is not supported; supported are "
                f"{', '.join((*known, DUAL_CHUNK))}."
            )
        if kind == "yarn" and parameters.get("factor") is None:
            raise ConfigError(
                "rope_scaling: yarn needs a factor, how many times as long texts may be."
            )
        if kind in SCALED_FROM_ORIGINAL:
            parameters.setdefault("original_max_position_embeddings", variant.max_positions)
        try:
            check_parameters(kind, parameters, variant.rotary_dim)
        except ModelError as error:
            raise ConfigError(
                f"rope_scaling: {str(error).replace(' of config.json', '')}"
            ) from None
        if variant.kind == PROPORTIONAL:
            return _proportional(variant, kind, parameters.get("factor", 1.0))
        parameters |= {key: variant.parameters[key] for key in GROWTH if key in variant.parameters}
        theta = float(parameters.pop("rope_theta", variant.theta))
        found = replace(variant, kind=kind, theta=theta, parameters=parameters)
        factor = parameters.get("factor", 1.0)
        return replace(found, stretch=factor if kind in ("default", "linear") else 1.0)
    factor = parameters.pop("factor", 4.0)
    if not is_positive(factor) or factor < 1:
        raise ConfigError(f"rope_scaling: factor must be at least 1, got {shown(factor)}.")
    unknown = parameters.keys() - KEYS
    if unknown:
        raise ConfigError(
            f"rope_scaling: {DUAL_CHUNK} has no {shown(sorted(unknown)[0])}; it has factor, "
            f"{', '.join(KEYS)}."
        )
    try:
        chunks = read_dual_chunk(parameters, variant.max_positions)
    except ValueError as error:
        raise ConfigError(f"rope_scaling: {error}.") from None
    return replace(variant, dual_chunk=chunks, stretch=float(factor))


def _proportional(variant: RopeVariant, kind: str, factor: float) -> RopeVariant:
    """The same for a variant that leaves pairs as they are: no other kind knows which. Raises
    ConfigError for kinds that would rotate them."""
    if kind not in ("default", "linear"):
        raise ConfigError(
            f"rope_scaling: {kind} rotates every pair of a head, where this model's rotary "
            f"embedding leaves some as they are; supported are default, linear and {DUAL_CHUNK}."
        )
    own = dict(variant.parameters)
    if kind == "linear":
        own["factor"] = factor * (own.get("factor") or 1.0)
    return replace(variant, parameters=own, stretch=factor)
