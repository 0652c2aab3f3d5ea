"""Which format each matrix of a model is packed in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from ockham.core.errors import ConfigError
from ockham.core.quantised import Encoding
from ockham.core.registry import first, make, techniques
from ockham.core.seams import (
    BlockFormat,
    Correction,
    Format,
    Layout,
    Linear,
    MixedFormat,
    QuantisedFormat,
    Role,
)
from ockham.kernels.layouts import ROWS

STORED = "stored"
"""The quantization that takes every matrix as the checkpoint has it, as naming none does."""

PLAIN_ROLES: tuple[Role, ...] = ("positions", "pooled")
"""What keeps its dtype, whatever quantization is asked for."""

WIDEST = "float32"
"""The dtype that holds every value of all encodings."""


def plain_format(dtype: str) -> Format:
    """The format of weights that are not quantised, of a dtype as `EngineConfig` names it."""
    technique = first("format", lambda each: bool(each.cls.dtype == dtype))  # type: ignore[attr-defined]
    if technique is None:
        raise ConfigError(f"there is no format for weights of dtype {dtype!r}.")
    weight_format: Format = make("format", technique.name)
    return weight_format


def quantizations() -> list[str]:
    """Everything that can be named as a quantization of any checkpoint."""
    return [*(form for technique in techniques("format") for form in technique.forms), STORED]


@dataclass(frozen=True, slots=True)
class Stored:
    """How a checkpoint stores one tensor: its dtype, or its quantisation, and the names of the
    tensors of the file that make it up. `opaque` says that it is quantised in a way that no
    encoding describes; `blocks` names the format that holds its type of blocks, with its options.
    """

    dtype: str
    tensors: tuple[str, ...]
    encoding: Encoding | None = None
    opaque: bool = False
    blocks: str | None = None

    @property
    def quantised(self) -> bool:
        return self.opaque or self.encoding is not None or self.blocks is not None


@dataclass(frozen=True, slots=True)
class Packing:
    """What becomes of one matrix: packed from floats, by `holder` taken over as encoded, or by
    `blocks` as the blocks that it is stored in. `correction` then adds a sum of `rank`."""

    format: Format
    holder: QuantisedFormat | None = None
    encoding: Encoding | None = None
    blocks: BlockFormat | None = None
    correction: Correction | None = None
    rank: int = 0

    @property
    def kept(self) -> bool:
        """Whether every stored value is held as it is."""
        return self.holder is not None or self.blocks is not None

    @property
    def widened(self) -> bool:
        """Whether the format holds every value of all dtypes and encodings."""
        return self.format.dtype == WIDEST

    @property
    def zeros(self) -> bool:
        """Whether the matrix has zero points."""
        return self.holder is not None and self.encoding is not None and self.encoding.zeros

    def describe(self) -> str:
        """What decides the product's bits besides the values."""
        added = f" and a sum of rank {self.rank}" if self.rank else ""
        return f"{self.format.name} ({self.format.activations} inputs){added}"

    def corrected(self, correction: Correction | None, shape: tuple[int, int]) -> Packing:
        """The same for a matrix whose products are corrected, if rounding changes its values."""
        if correction is None or self.kept or self.format.dtype is not None:
            return self
        return replace(self, correction=correction, rank=min(correction.rank, *shape))


@dataclass(frozen=True, slots=True)
class Packer:
    """Decides by how a matrix is stored. `asked` is the quantization that the user named, if any;
    `plain` the format of matrices that the checkpoint did not quantise, except that where `exact`
    those take the format of float32 of which that of bfloat16 would round values. `layout` is how
    all of them are laid out. `alone` says that `asked` leaves no matrix to another format.

    `mix` names formats for single tensors, by key: such a tensor is packed in exactly that one, or
    where it is None as without any quantization; `asked` is for the others. `fitted` are matrices
    that were packed already, by the key of their parts (see `model/calibration.py`): a loader takes
    them out. `corrections` are added to the products of some matrices, by their key, or of
    single tensors in the mix, by theirs."""

    plain: Format
    asked: Format | None = None
    exact: bool = False
    layout: Layout = ROWS
    alone: bool = False
    mix: Mapping[str, Format | None] = field(default_factory=dict)
    fitted: MutableMapping[str, Linear] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)

    def packings(
        self, parts: Sequence[Stored], in_features: int, role: Role, keys: Sequence[str] = ()
    ) -> list[tuple[Sequence[Stored], Packing]]:
        """How to pack one matrix that is made of these parts, one below the other: as one, or runs
        of them apart, where the mix names several formats for them (of which `keys` are the keys),
        or they are blocks of several types, which no single format holds.
        """
        if self.mix and any(key in self.mix for key in keys):
            return self._mixed(parts, in_features, role, keys)
        whole = self.packing(parts, in_features, role)
        if whole.kept or self.asked is not None or not any(part.blocks for part in parts):
            return [(parts, whole)]
        runs = [list(run) for _, run in itertools.groupby(parts, lambda part: part.dtype)]
        return [(run, self.packing(run, in_features, role)) for run in runs]

    def _mixed(
        self, parts: Sequence[Stored], in_features: int, role: Role, keys: Sequence[str]
    ) -> list[tuple[Sequence[Stored], Packing]]:
        """Runs of parts for which the mix has the same; one with a correction stands alone."""
        found: list[tuple[Sequence[Stored], Packing]] = []
        named = [
            (key in self.mix, self.mix.get(key), key if key in self.corrections else None)
            for key in keys
        ]
        first = 0
        for (own, chosen, _), run in itertools.groupby(named):
            count = len(list(run))
            packer = replace(self, mix={})
            if own:
                packer = replace(packer, asked=chosen, alone=True)
            found += packer.packings(parts[first : first + count], in_features, role)
            first += count
        return found

    def format_for(self, role: Role, in_features: int) -> Format | None:
        """The format that was asked for, or the one that it leaves such a matrix to; None for what
        is not quantised."""
        if role in PLAIN_ROLES:
            return None
        role = "router" if role == "shortcut" else role
        if self.alone or not isinstance(self.asked, MixedFormat):
            return self.asked
        other = self.asked.beside(role, in_features)
        return self.asked if other is None else make("format", other)

    def packing(self, parts: Sequence[Stored], in_features: int, role: Role) -> Packing:
        """How to pack parts in one format.

        Quantised parts that are stored alike are taken over by a format that holds their values; if
        there is none, or only some parts are quantised, all are widened to float32. What the user
        names is done in any case, and not silently: widened values are packed anew.
        """
        names = {part.blocks for part in parts}
        name = names.pop() if len(names) == 1 else None
        if name is not None and (self.asked is None or self.asked.name == name.partition(":")[0]):
            blocks: BlockFormat = make("format", name)
            return Packing(blocks, blocks=blocks)
        encodings = [part.encoding for part in parts if part.encoding is not None]
        if not any(part.quantised for part in parts):
            return Packing(self.format_for(role, in_features) or self._plain(parts))
        if len(encodings) == len(parts):
            common = _common(encodings)
            holder = None if common is None else _holder(common, in_features)
            if holder is not None and (self.asked is None or self.asked.name == holder.name):
                return Packing(holder, holder, common)
        return Packing(self.format_for(role, in_features) or plain_format(WIDEST))

    def _plain(self, parts: Sequence[Stored]) -> Format:
        rounds = self.plain.dtype == "bfloat16" and any(part.dtype != "BF16" for part in parts)
        return plain_format(WIDEST) if rounds and self.exact else self.plain


def _holder(encoding: Encoding, in_features: int) -> QuantisedFormat | None:
    """Of the formats that hold such a matrix exactly the one that takes the fewest bytes."""
    classes = [technique.cls for technique in techniques("format")]
    asked = [cls.holding(encoding, in_features) for cls in classes if hasattr(cls, "holding")]
    holders: list[QuantisedFormat] = [holder for holder in asked if holder is not None]
    return min(holders, key=lambda each: _row_bits(each, in_features, encoding), default=None)


def _row_bits(weight_format: Format, in_features: int, encoding: Encoding) -> int:
    """What a row of such a matrix needs."""
    fields = weight_format.fields(in_features, encoding.zeros).values()
    return sum(field.bits * math.prod(field.shape) for field in fields)


def _common(encodings: Sequence[Encoding]) -> Encoding | None:
    """An encoding of the rows of all; None if they differ in bits or groups."""
    first = encodings[0]
    if any((each.bits, each.group) != (first.bits, first.group) for each in encodings):
        return None
    half, zeros = all(e.half_scales for e in encodings), any(e.zeros for e in encodings)
    return Encoding(first.bits, first.group, half, zeros)
