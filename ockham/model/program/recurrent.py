"""The layers with a state of each head or channel: their sizes, as config.json gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.kernels.ops.linear_attention import based_shape
from ockham.kernels.ops.recurrent import RecurrentShape
from ockham.model.program.record import Architecture, StateSpaceRecord
from ockham.model.program.single import RECURRENT, of_kinds
from ockham.model.program.values import Values


@dataclass(frozen=True, slots=True)
class RecurrentSizes:
    """Such layers, `layers`."""

    layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    length: int
    """Of the convolution before the rule."""

    @property
    def shape(self) -> RecurrentShape:
        return RecurrentShape(
            self.key_heads, self.value_heads, self.key_dim, self.value_dim, self.length
        )

    @property
    def cell_floats(self) -> int:
        """What is kept of a token of the page that is not full."""
        return self.shape.cell_floats

    @property
    def end_floats(self) -> int:
        """What is kept at the end of a page."""
        return self.shape.end_floats


@dataclass(frozen=True, slots=True)
class DeltaSizes(RecurrentSizes):
    """Gated delta rules."""

    tiled: bool = False
    """Whether value heads take turns among key heads, and those of one do not stand together."""
    negative: bool = False
    """Whether decays are stored as they are, and not as the logarithm of their opposite."""
    beside: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class StateSpaceSizes(RecurrentSizes):
    """Selective state spaces."""

    convolution_bias: bool = False
    biases: bool = False
    """Of the projection of inputs."""
    shortest_step: float = 0.0
    longest_step: float = float("inf")
    negative: bool = False
    """As of delta rules."""
    output_biases: bool = False
    normed: bool = True
    norm_first: bool = False
    """Whether the norm stands before the gate."""
    beside: bool = False
    """Whether their layers attend too, side by side."""


@dataclass(frozen=True, slots=True)
class GruSizes:
    """Gated linear recurrences of `width` channels, each of which has a state."""

    layers: tuple[int, ...]
    width: int
    bounded: bool = False
    beside: ClassVar[bool] = False

    @property
    def cell_floats(self) -> int:
        return self.width

    @property
    def end_floats(self) -> int:
        return self.width


@dataclass(frozen=True, slots=True)
class LinearSizes:
    """Linear attention by a Taylor polynomial."""

    layers: tuple[int, ...]
    heads: int
    features: int
    value_dim: int
    beside: ClassVar[bool] = False

    @property
    def cell_floats(self) -> int:
        return based_shape(self.heads, self.features, self.value_dim).cell_floats

    @property
    def end_floats(self) -> int:
        return based_shape(self.heads, self.features, self.value_dim).end_floats


RecurrentLayers = DeltaSizes | StateSpaceSizes | GruSizes | LinearSizes


def read_recurrent(
    architecture: Architecture, values: Values, layers: int
) -> RecurrentLayers | None:
    """The layers of an architecture that have a state, and their sizes."""
    return (
        _deltas(architecture, values, layers)
        or _state_spaces(architecture, values, layers)
        or _grus(architecture, values, layers)
        or _linears(architecture, values, layers)
    )


def _linears(architecture: Architecture, values: Values, layers: int) -> LinearSizes | None:
    record = architecture.linear
    if record is None:
        return None
    own = layers_called(values.config["layer_types"], record.layer_type)
    if not own:
        return None
    sizes = (values.size(key) for key in (record.heads, record.features, record.value_dim))
    return LinearSizes(own, *sizes)


def _grus(architecture: Architecture, values: Values, layers: int) -> GruSizes | None:
    record, config = architecture.gru, values.config
    if record is None:
        return None
    for key, only in ((record.expansion, 1), (record.convolution, False)):
        if (stated := config.get(key)) not in (None, only):
            raise ModelError(
                f"{values.spelling.of(key)} is {shown(stated)}; only {only} is supported."
            )
    if values.flag("tie_word_embeddings"):
        raise ModelError(
            f"{values.spelling.file} ties the head to the embeddings: {architecture.name} needs "
            "one of its own, whose weights are ternary."
        )
    own = tuple(range(layers))
    return GruSizes(own, values.size("hidden_size"), values.flag(record.bounded))


def _deltas(architecture: Architecture, values: Values, layers: int) -> DeltaSizes | None:
    record, config = architecture.delta, values.config
    if record is None:
        return None
    types = config.get("layer_types")
    if types is None:
        every = values.size("full_attention_interval")
        types = [record.layer_type if (i + 1) % every else "full_attention" for i in range(layers)]
    own = layers_of_kind(values, types, (record.layer_type,), layers)
    if not own:
        return None
    heads = values.size(record.key_heads), values.size(record.value_heads)
    _check_multiple(values, (record.key_heads, record.value_heads), heads)
    return DeltaSizes(
        own,
        *heads,
        values.size(record.key_dim),
        values.size(record.value_dim),
        values.size(record.length),
        bool(config.get(record.tiled)),
        bool(config.get(record.negative)),
    )


def _state_spaces(
    architecture: Architecture, values: Values, layers: int
) -> StateSpaceSizes | None:
    record = architecture.state_space
    if record is None:
        return None
    if record.beside:
        own = tuple(range(layers))
    elif architecture.single:
        own = of_kinds(values.config, layers, RECURRENT)
    else:
        types = values.config.get("layer_types")
        own = layers_of_kind(values, types, record.layer_types, layers)
    if not own:
        return None
    heads = values.size(record.groups), values.size(record.heads)
    _check_multiple(values, (record.groups, record.heads), heads)
    shortest, longest = _limits(values, record.step_limits)
    return StateSpaceSizes(
        own,
        *heads,
        values.size(record.state_dim),
        _head_dim(record, values, heads[1]),
        values.size(record.length),
        values.flag(record.convolution_bias),
        values.flag(record.biases),
        shortest,
        longest,
        bool(values.config.get(record.negative)),
        values.flag(record.output_biases or record.biases),
        values.flag(record.normed),
        values.flag(record.norm_first),
        record.beside,
    )


def _head_dim(record: StateSpaceRecord, values: Values, heads: int) -> int:
    """The size of a head, which may be said by the width of all."""
    stated = values.config.get(record.head_dim)
    if record.width is None or (stated is not None and stated != "auto"):
        own = values.size(record.head_dim)
    else:
        own = values.size(record.width) // heads
    whole = own * heads if record.width is None else values.size(record.width)
    if own * heads != whole:
        raise ModelError(
            f"{values.spelling.of(str(record.width))} is {whole}, and not that of {heads} heads "
            f"({record.heads}) of {own} ({record.head_dim})."
        )
    return own


def _limits(values: Values, key: str | None) -> tuple[float, float]:
    """The shortest and the longest step."""
    stated = None if key is None else values.config.get(key)
    if stated is None:
        return 0.0, float("inf")
    found = [_number(each) for each in stated] if isinstance(stated, list | tuple) else []
    if len(found) != 2 or not 0 <= found[0] <= found[1]:
        raise ModelError(
            f"{values.spelling.of(str(key))} is {shown(stated)}; it is the shortest and the "
            "longest step, of 0 or more."
        )
    return found[0], found[1]


def _number(stated: Any) -> float:
    """A number of config.json, where transformers writes infinity as an object; NaN for others."""
    if isinstance(stated, dict) and stated.get("__float__") == "Infinity":
        return float("inf")
    return float(stated) if isinstance(stated, int | float) else float("nan")


def _check_multiple(values: Values, keys: tuple[str, str], heads: tuple[int, int]) -> None:
    if heads[1] % heads[0]:
        raise ModelError(
            f"{values.spelling.of(keys[1])} ({heads[1]}) is not a multiple of "
            f"{values.spelling.of(keys[0])} ({heads[0]})."
        )


def layers_called(types: Sequence[str], kind: str) -> tuple[int, ...]:
    """The layers of a kind among kinds that are known."""
    return tuple(layer for layer, own in enumerate(types) if own == kind)


ATTENDING = ("full_attention", "attention")
"""How config.json calls layers that attend, beside others that do not."""


def layers_of_kind(
    values: Values, types: Any, kinds: Sequence[str], layers: int
) -> tuple[int, ...]:
    """The layers of a kind, by any of its names, of those that attend and those. Raises ModelError
    for others."""
    key = values.spelling.of("layer_types")
    if not isinstance(types, list | tuple):
        raise ModelError(
            f"{key} must be a list of the kinds of {layers} layers, not {shown(types)}."
        )
    if len(types) != layers:
        raise ModelError(f"{key} has {len(types)} entries for {layers} layers.")
    for each in types:
        if each not in ATTENDING and each not in kinds:
            raise ModelError(
                f"the layer type {shown(each)} is not supported; supported are full_attention and "
                f"{kinds[0]}."
            )
    return tuple(i for i, each in enumerate(types) if each in kinds)
