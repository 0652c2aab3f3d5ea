"""Rotary embedding variants: from config.json to fixed inverse frequencies.

Variants whose frequencies depend on the length of the text (dynamic NTK, LongRoPE) are fixed when
the model is loaded, by the longest sequence that will be served, so that a token's key never
depends on what follows it. The formulas are those of transformers' `modeling_rope_utils.py`, in
fp32 as there, because that is what the checkpoints were trained with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.ops import DualChunk, Rope
from ockham.model.program.architectures import Architecture, Config
from ockham.model.program.dual_chunk import read_dual_chunk


@dataclass(frozen=True, slots=True)
class RopeVariant:
    """One rotary embedding as a checkpoint defines it, before the served length is known."""

    kind: str
    theta: float
    rotary_dim: int
    max_positions: int
    parameters: Mapping[str, Any]
    dual_chunk: DualChunk | None = None
    stretch: float = 1.0
    """How many times `max_positions` are meant, beyond what the kind says."""

    @property
    def longest(self) -> int:
        """The number of positions for which the variant is meant."""
        return int(self._made_for * self.stretch)

    @property
    def _made_for(self) -> int:
        if self.kind == "dynamic":
            return int(self.max_positions * self.parameters["factor"])
        if self.kind == "yarn":
            return max(self.max_positions, int(self._original * self._factor))
        return self.max_positions

    @property
    def of_all_dimensions(self) -> float:
        """By what YaRN multiplies queries and keys alike where `mscale_all_dim` is given, beside
        its scale of the elements that are rotated."""
        weight = self.parameters.get("mscale_all_dim")
        if self.kind != "yarn" or not weight:
            return 1.0
        return _mscale(self._factor, weight)

    def describe(self) -> str:
        """A text that is the same for equal variants only."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "theta": self.theta,
            "dim": self.rotary_dim,
        }
        if self.dual_chunk is not None:
            values["dual_chunk"] = asdict(self.dual_chunk)
        return json.dumps(
            {**values, "max": self.max_positions, **self.parameters}, sort_keys=True, default=str
        )

    def fix(self, max_model_len: int) -> Rope:
        """The frequencies for sequences of up to `max_model_len` tokens. Raises ModelError for
        parameters of which none come out."""
        try:
            with np.errstate(all="ignore"):
                frequencies, scale = _VARIANTS[self.kind](self, max_model_len)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ModelError(f"{self._wrong}: {shown(str(error))}.") from None
        if not (np.isfinite(frequencies).all() and math.isfinite(scale)):
            raise ModelError(f"{self._wrong}: frequencies that are not finite.")
        return Rope(
            np.ascontiguousarray(frequencies, np.float32),
            float(scale),
            self.dual_chunk,
            self.parameters.get("growth", 0.0),
            self.parameters.get("period", 1),
        )

    @property
    def _wrong(self) -> str:
        return f"the parameters of the rotary embedding {self.kind!r} give no frequencies"

    @property
    def _original(self) -> int:
        return int(self.parameters["original_max_position_embeddings"])

    @property
    def _factor(self) -> float:
        factor = self.parameters.get("factor")
        return self.max_positions / self._original if factor is None else float(factor)

    def _powers(self, theta: float) -> Floats:
        """theta ** (2 i / rotary_dim)."""
        exponents = np.arange(0, self.rotary_dim, 2).astype(np.float32) / np.float32(
            self.rotary_dim
        )
        powers: Floats = np.float32(theta) ** exponents
        return powers


def _default(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    return 1.0 / rope._powers(rope.theta), 1.0


def _linear(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    return 1.0 / rope._powers(rope.theta) / np.float32(rope._factor), 1.0


def _dynamic(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    """NTK-aware scaling of the base, for texts of `length` tokens."""
    factor, dim = rope.parameters["factor"], rope.rotary_dim
    stretch = factor * max(length, rope.max_positions) / rope.max_positions - (factor - 1)
    return 1.0 / rope._powers(rope.theta * stretch ** (dim / (dim - 2))), 1.0


def _llama3(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, the rest blended."""
    plain = 1.0 / rope._powers(rope.theta)
    low, high = rope.parameters["low_freq_factor"], rope.parameters["high_freq_factor"]
    wavelengths = 2 * math.pi / plain
    blend = (rope._original / wavelengths - low) / (high - low)
    divided = plain / np.float32(rope._factor)
    blended = (1 - blend) * divided + blend * plain
    frequencies = np.where(wavelengths > rope._original / low, divided, plain)
    medium = (wavelengths >= rope._original / high) & (wavelengths <= rope._original / low)
    return np.where(medium, blended, frequencies), 1.0


def _yarn(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    """YaRN (Peng et al. 2023): interpolate slow dimensions, keep fast ones, ramp between."""
    parameters, dim = rope.parameters, rope.rotary_dim

    def dimension(rotations: float) -> float:
        turns = math.log(rope._original / (rotations * 2 * math.pi))
        return dim * turns / (2 * math.log(rope.theta))

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    powers = rope._powers(rope.theta)
    frequencies = ramp / (np.float32(rope._factor) * powers) + (1 - ramp) / powers
    return frequencies, _yarn_scale(parameters, rope._factor)


def _yarn_scale(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        of_all = _mscale(factor, parameters["mscale_all_dim"])
        return _mscale(factor, parameters["mscale"]) / of_all
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _proportional(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    """Gemma 4: the first pairs of a head are rotated as if all were, the others not at all."""
    rotated = int(rope.parameters["partial_rotary_factor"] * rope.rotary_dim // 2)
    frequencies = 1.0 / rope._powers(rope.theta) / np.float32(rope.parameters.get("factor") or 1.0)
    frequencies[rotated:] = 0.0
    return frequencies, 1.0


def _longrope(rope: RopeVariant, length: int) -> tuple[Floats, float]:
    """LongRoPE (Ding et al. 2024): per-dimension factors, short or long by the served length."""
    which = "long_factor" if length > rope._original else "short_factor"
    factors = np.array(rope.parameters[which], np.float32)
    scale = rope.parameters.get("attention_factor")
    if scale is None:
        stretch = rope._factor
        scale = math.sqrt(1 + math.log(stretch) / math.log(rope._original)) if stretch > 1 else 1.0
    return 1.0 / (factors * rope._powers(rope.theta)), float(scale)


_VARIANTS: dict[str, Callable[[RopeVariant, int], tuple[Floats, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
KINDS = tuple(_VARIANTS)
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": ("partial_rotary_factor",),
}
_NUMBERS = (
    *("rope_theta", "factor", "attention_factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "partial_rotary_factor",
)
SCALED_FROM_ORIGINAL = ("llama3", "yarn", "longrope")
_SECTIONS = ("mrope_section", "mrope_interleaved")
GROWTH = ("growth", "period")
"""The keys of `RopeVariant.parameters` that let queries grow."""
_LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(
    config: Config, architecture: Architecture, head_dim: int, sliding: bool
) -> RopeVariant | None:
    """The variant of one kind of layer; None where the checkpoint says that it has none.

    Reads `rope_theta` with `rope_scaling`, and the newer `rope_parameters`, flat or nested by
    layer type. Raises ModelError for a variant that is not known or lacks a parameter.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise ModelError(
            f"the rotary embedding of config.json must be an object, not {shown(given)}."
        )
    theta = config.get("rope_theta") or 10_000.0
    if any(key in given for key in _LAYER_TYPES):
        given = given.get(_LAYER_TYPES[sliding])
        if given is None:
            return None
    elif sliding and architecture.local_theta is not None:
        given = {}
    elif sliding and architecture.unscaled_windows:
        given = {key: value for key, value in given.items() if key == "rope_theta"}
    if sliding and architecture.local_theta is not None:
        theta = config[architecture.local_theta]
    parameters = dict(given)
    if architecture.sections:
        parameters = {key: value for key, value in parameters.items() if key not in _SECTIONS}
    growth = parameters.pop(architecture.query_growth or "", None) or 0.0
    kind = str(parameters.pop("rope_type", parameters.pop("type", None)) or "default")
    parameters.pop("type", None)
    kind = architecture.rope_aliases.get(kind, kind)
    theta = parameters.pop("rope_theta", None) or theta
    stretch = parameters.pop(architecture.stretched_base or "", None)
    partial = parameters.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor")
    if kind == "proportional":
        parameters["partial_rotary_factor"] = 1.0 if partial is None else partial
        partial = None
    rotary_dim = int(head_dim * _partial(architecture, partial))
    if stretch and kind == "dynamic":
        theta, kind = _stretched(theta, stretch, rotary_dim), "default"
        parameters = {}
    if kind in SCALED_FROM_ORIGINAL:
        original = config.get("original_max_position_embeddings") or parameters.get(
            "original_max_position_embeddings", config["max_position_embeddings"]
        )
        parameters["original_max_position_embeddings"] = original
    check_parameters(kind, {**parameters, "rope_theta": theta}, rotary_dim)
    positions = int(config["max_position_embeddings"])
    if growth:
        parameters |= _growing(growth, parameters.get("original_max_position_embeddings"))
    variant = RopeVariant(kind, float(theta), rotary_dim, positions, parameters)
    chunks = config.get("dual_chunk_attention_config")
    if not chunks or sliding:
        return variant
    if not isinstance(chunks, dict):
        raise ModelError(
            f"dual_chunk_attention_config of config.json must be an object, not {shown(chunks)}."
        )
    try:
        return replace(variant, dual_chunk=read_dual_chunk(chunks, positions))
    except ValueError as error:
        raise ModelError(f"dual_chunk_attention_config of config.json: {error}.") from None


def _stretched(theta: Any, stretch: Any, rotary_dim: int) -> float:
    if not is_positive(theta) or not is_positive(stretch) or rotary_dim < 4:
        raise ModelError(
            f"a dynamic rotary embedding over {rotary_dim} elements with the base {shown(theta)}, "
            f"stretched by {shown(stretch)}, is not supported: it needs positive numbers, and 4 "
            "elements."
        )
    return float(theta * stretch ** (rotary_dim / (rotary_dim - 2)))


def _growing(growth: Any, period: Any) -> dict[str, Any]:
    """What lets queries grow, checked."""
    if not is_positive(growth) or type(period) is not int or period < 1:
        raise ModelError(
            f"queries that grow by {shown(growth)} with their position need a positive number, and "
            "original_max_position_embeddings of the rotary embedding of config.json, which is "
            f"{shown(period)}."
        )
    return {"growth": float(growth), "period": period}


def _partial(architecture: Architecture, factor: float | None) -> float:
    if factor is None or factor == 1.0:
        return 1.0
    if not is_positive(factor) or factor > 1:
        raise ModelError(
            "partial_rotary_factor of config.json must be a number above 0 and at most 1, not "
            f"{shown(factor)}."
        )
    if not architecture.partial_rotary:
        raise ModelError(
            f"config.json sets partial_rotary_factor to {factor}, which {architecture.name} does "
            "not know."
        )
    return float(factor)


def check_parameters(kind: str, parameters: Mapping[str, Any], rotary_dim: int) -> None:
    if kind not in _VARIANTS or "mrope_section" in parameters:
        name = "mrope" if "mrope_section" in parameters else kind
        raise ModelError(
            f"the rotary embedding {name!r} is not supported; supported are {', '.join(_VARIANTS)}."
        )
    if rotary_dim < 2 or rotary_dim % 2:
        raise ModelError(f"{rotary_dim} elements of a head cannot be rotated in pairs.")
    for key in _NUMBERS:
        value = parameters.get(key)
        if value is not None and not is_positive(value):
            raise ModelError(
                f"{key} of the rotary embedding of config.json must be a positive number, not "
                f"{shown(value)}."
            )
    for key in _REQUIRED.get(kind, ()):
        if parameters.get(key) is None:
            raise ModelError(f"the rotary embedding {kind!r} of config.json lacks {key!r}.")
        if key.endswith("_factor") and isinstance(parameters[key], list):
            count = len(parameters[key])
            if count != rotary_dim // 2:
                raise ModelError(
                    f"{key} of the rotary embedding has {count} entries, but {rotary_dim // 2} "
                    "pairs of elements are rotated."
                )
            if not all(map(is_positive, parameters[key])):
                raise ModelError(f"{key} of the rotary embedding must hold positive numbers.")


def is_positive(value: object) -> bool:
    """Whether it is a positive number that is no infinity; JSON as Python reads it has NaN too."""
    return isinstance(value, int | float) and 0 < value < 1e30
