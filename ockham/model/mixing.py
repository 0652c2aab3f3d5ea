"""Mixes: other quantizations for some tensors of a model, by their roles or names.

A mix maps a pattern to a quantization, such as {"down": "int8", "*.layers.0.*": "bf16"}. A pattern
is a role (`ockham.core.seams.Role`) or a shell pattern of tensors' names; a tensor takes the last
one that fits it. It is packed in exactly the format that is named, also where that format alone
would leave it to another; "stored" takes it as it would be without any quantization. A correction
may follow, {"down": "int4:64+NAME:rank=16"}: it is then added to the products of each such tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import get_args

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.registry import make, techniques
from ockham.core.seams import Correction, Format, Linear, MixedFormat, Role
from ockham.kernels.ops import Experts
from ockham.model.checkpoint.sources import TensorSource
from ockham.model.loading import named_format
from ockham.model.packed.layout import key_of
from ockham.model.packed.packing import PLAIN_ROLES
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part, UnloadedLinear, VectorPart, matrix_shape
from ockham.weights.groups import choose_group

MIXED = "mix"
"""What a converted directory calls the quantization of such weights."""

AND = "+"
"""What stands between a format and a correction."""


def form_of(given: str) -> tuple[str, str | None]:
    """The quantization and the correction of what a mix names; None for no correction."""
    quantization, both, correction = given.partition(AND)
    return quantization.strip(), correction.strip() if both else None


@dataclass(frozen=True, slots=True)
class Mix:
    """What a mix names, by the keys of tensors. A format is None for "stored"."""

    formats: Mapping[str, Format | None] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model that may be quantised, or the rows of one that stand for an expert.
    `matrix` is the key of the packed matrix that it is part of, `first` its first row there;
    `whole` says that all of that matrix has one format."""

    key: str
    part: Part
    role: Role
    matrix: str
    first: int
    whole: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return matrix_shape([self.part])


class _Names:
    """Weights without values that note what is asked for."""

    def __init__(self, source: TensorSource) -> None:
        self.found: list[Tensor] = []
        self.keys: dict[int, str] = {}
        self.has = source.has
        self._held: list[Linear] = []

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        first = 0
        for part in parts:
            tensor = Tensor(key_of([part]), part, role, key_of(parts), first)
            if role not in PLAIN_ROLES:
                self.found.append(tensor)
            first += tensor.shape[0]
        linear = UnloadedLinear("", *matrix_shape(parts), 0)
        self._held.append(linear)
        self.keys[id(linear)] = key_of(parts)
        return linear

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        return np.empty(0, np.float32)


def tensors_of(description: ModelDescription, source: TensorSource) -> list[Tensor]:
    """Every tensor of a model that a mix may name, in the order of the program."""
    names = _Names(source)
    program = compile_program(description, names, description.max_position_embeddings)
    whole = {
        names.keys[id(matrix)]
        for op in program.ops
        if isinstance(op, Experts)
        for matrix in op.matrices().values()
    }
    return [replace(tensor, whole=tensor.matrix in whole) for tensor in names.found]


def adaptable_matrices(description: ModelDescription, source: TensorSource) -> frozenset[str]:
    """The keys of the matrices to whose products something may be added."""
    names = _Names(source)
    program = compile_program(description, names, description.max_position_embeddings)
    return frozenset(
        names.keys[id(op.matrices()[field])] for op in program.ops for field in op.adaptable
    )


def named_mix(mix: Mapping[str, str], description: ModelDescription, source: TensorSource) -> Mix:
    """The format and the correction of each tensor that a mix names.

    Raises ConfigError for a pattern that fits no tensor, a quantization or a correction that does
    not exist, and for a tensor that cannot be corrected.
    """
    if not mix:
        return Mix()
    tensors = tensors_of(description, source)
    made = cache(named_format)
    found: dict[str, Format | None] = {}
    corrections: dict[str, Correction] = {}
    for pattern, given in mix.items():
        quantization, named = form_of(given)
        correction = None if named is None else _correction(named, made(quantization), given)
        fitting = list(_fitting(pattern, tensors))
        if not fitting:
            roles = ", ".join(sorted({tensor.role for tensor in tensors}))
            raise ConfigError(
                f"the mix names {pattern!r}, which is no tensor of this model; name a role "
                f"({roles}) or a pattern of names such as {tensors[-1].part.name!r}."
            )
        for tensor in fitting:
            found[tensor.key] = made(quantization)
            corrections.pop(tensor.key, None)
            if correction is not None:
                corrections[tensor.key] = correction
    _check_whole(found, tensors)
    if corrections:
        allowed = adaptable_matrices(description, source)
        for tensor in tensors:
            if tensor.key in corrections and tensor.matrix not in allowed:
                raise ConfigError(
                    f"the mix corrects {tensor.key!r}, to whose products nothing can be added; "
                    "corrections are for the projections of attention and of dense feed-forwards."
                )
    return Mix(found, corrections)


def grouped_mix(
    quantization: str, least_gain: float, description: ModelDescription, source: TensorSource
) -> dict[str, str]:
    """A mix in which each tensor that a format takes has it in groups of its own size (see
    weights/groups.py). `quantization` is the name of the format.

    Raises ConfigError for a format whose groups cannot be chosen, and a gain that cannot be.
    """
    grouped = {each.name: _by_group(each.forms) for each in techniques("format")}
    names = sorted(name for name, made in grouped.items() if len(made) > 1)
    if quantization not in names:
        raise ConfigError(
            f"the groups of {quantization!r} cannot be chosen for each tensor; those of "
            f"{', '.join(names)} can."
        )
    if not 0.0 < least_gain < 1.0:
        raise ConfigError(
            "the share by which ranges must shrink (--adaptive-groups) is above 0 and below 1, got "
            f"{least_gain}."
        )
    together: dict[str, list[Tensor]] = {}
    for tensor in tensors_of(description, source):
        together.setdefault(tensor.matrix if tensor.whole else tensor.key, []).append(tensor)
    mix: dict[str, str] = {}
    for own in together.values():
        role, inputs = own[0].role, own[0].shape[1]
        fitting = {
            group: form
            for group, (form, each) in grouped[quantization].items()
            if inputs % group == 0
            and not (isinstance(each, MixedFormat) and each.beside(role, inputs))
        }
        if fitting:
            blocks = (block for tensor in own for block in source.rows(tensor.part))
            form = fitting[choose_group(blocks, sorted(fitting), least_gain)]
            mix |= dict.fromkeys((tensor.key for tensor in own), form)
    return mix


def _by_group(forms: Sequence[str]) -> dict[int, tuple[str, Format]]:
    """The forms of a format that have groups, by the size of these."""
    made: dict[str, Format] = {form: make("format", form) for form in forms}
    return {each.group: (form, each) for form, each in made.items() if each.group}


def _correction(named: str, quantization: Format | None, given: str) -> Correction:
    """A correction that a mix names beside a quantization. Raises ConfigError for one beside
    weights that are not rounded."""
    if quantization is None or quantization.dtype is not None:
        raise ConfigError(
            f"the mix names {given!r}, but a correction is for weights that are rounded: name a "
            "format of fewer bits before it."
        )
    made: Correction = make("correction", named)
    return made


def _check_whole(mix: Mapping[str, Format | None], tensors: Sequence[Tensor]) -> None:
    """Raises ConfigError where the mix divides a matrix that has one format."""
    formats: dict[str, object] = {}
    for tensor in tensors:
        own = mix.get(tensor.key, tensor.matrix)  # nothing else equals a key
        if tensor.whole and formats.setdefault(tensor.matrix, own) != own:
            raise ConfigError(
                f"the mix names another format for {tensor.key!r} than for the rest of "
                f"{tensor.matrix!r}; an expert's projections that are multiplied together have "
                "one format."
            )


def _fitting(pattern: str, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    if pattern in get_args(Role):
        return (tensor for tensor in tensors if tensor.role == pattern)
    return (
        tensor
        for tensor in tensors
        if pattern == tensor.key or fnmatchcase(tensor.part.name, pattern)
    )
