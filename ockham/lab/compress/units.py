"""What is chosen for together, and what it may become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import make, name_of, techniques
from ockham.core.seams import Format, Layout, SizedFormat
from ockham.model.checkpoint.sources import TensorSource
from ockham.model.mixing import Tensor, form_of
from ockham.model.program.weights import matrix_shape
from ockham.weights.stored import check_packs

STORED = "stored"
"""The form of a tensor that is left as the checkpoint has it."""

_EXPERT = re.compile(r"\.experts\.\d+\.|\[\d+:\d+\]")


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that get one format together: one alone, or that of all experts of a layer."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in (each.shape for each in self.tensors))

    @property
    def inputs(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def pieces(self) -> list[tuple[Tensor, ...]]:
        """Tensors that are packed together: one each, or all of a matrix that has one format."""
        found: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.matrix if tensor.whole else tensor.key, []).append(tensor)
        return [tuple(own) for own in found.values()]

    @property
    def matrices(self) -> tuple[str, ...]:
        """The keys of the packed matrices that the tensors are part of."""
        return tuple(dict.fromkeys(each.matrix for each in self.tensors))


def units_of(tensors: Sequence[Tensor]) -> list[Unit]:
    """Tensors by unit, in the order of the program."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        key = tensor.matrix if tensor.whole else tensor.key
        name = _EXPERT.sub(lambda m: ".experts.*." if m[0][0] == "." else "[*]", key)
        found.setdefault(name, []).append(tensor)
    return [Unit(name, tuple(own)) for name, own in found.items()]


def forms_for(layout: Layout, plain: Format, only: Sequence[str] = ()) -> list[str]:
    """The quantizations that weights may be packed in anew, each once, of fewer bits than `plain`;
    of `only` those named there. Found in the registry: no format is named here.

    Raises ConfigError for a name of `only` that is none of them.
    """
    forms: list[str] = []
    for technique in techniques("format"):
        made: dict[str, Format] = {form: make("format", form) for form in technique.forms}
        groups = {each.group for form, each in made.items() if form != technique.name}
        if made[technique.name].group in groups:  # the name alone is one of its forms, or a mix
            del made[technique.name]
        narrower = plain.dtype == "float32" and technique.cls.dtype == "bfloat16"  # type: ignore[attr-defined]
        for form, each in made.items():
            if (each.dtype is None or narrower) and layout.holds(each.name) and _packs(each):
                forms.append(form)
    unknown = [each for each in only if each not in forms and each not in map(name_of, forms)]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no format that weights can be packed in here; there is: "
            f"{', '.join(sorted(forms))}."
        )
    return sorted(form for form in forms if not only or form in only or name_of(form) in only)


def fits(form: str, inputs: int) -> bool:
    """Whether rows of so many inputs can have a format, corrected or not."""
    made: Format = make("format", form_of(form)[0])
    try:
        made.fields(inputs)
    except ModelError:
        return False
    return True


def unit_bytes(unit: Unit, made: Format, layout: Layout, source: TensorSource) -> int | None:
    """Bytes of a unit in a format; None where it cannot have it. Tensors are read only for a format
    whose matrices take room by their values."""
    total = 0
    for piece in unit.pieces:
        parts = [tensor.part for tensor in piece]
        shape = matrix_shape(parts)
        try:
            if isinstance(made, SizedFormat):
                blocks = (block for part in parts for block in source.rows(part))
                made = made.sized(*shape, blocks)
            total += layout.nbytes(made, *shape)
        except ModelError:
            return None
    return total


def _packs(made: Format) -> bool:
    """Whether a format packs any weights: some only hold what a file has."""
    try:
        check_packs(made)
    except ModelError:
        return False
    return True
