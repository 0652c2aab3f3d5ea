"""A narrower residual stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Doubles
from ockham.core.errors import ConfigError
from ockham.core.registry import register
from ockham.core.seams import Rewritable
from ockham.weights.stream import absorb_scales, turn_reads, turn_writes

NAME = "slicegpt"


class SliceGptOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` of the stream's channels is removed; the new width is a multiple of `multiple`. With
    `one_basis`, all blocks share a basis, and nothing is multiplied on the stream."""

    share: float = 0.25
    multiple: int = 32
    one_basis: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"share must be at least 0 and below 1, got {self.share}.")
        if self.multiple < 1:
            raise ConfigError(f"multiple must be at least 1, got {self.multiple}.")


@register("transform", NAME, exact=False, paper="117")
class SliceGpt:
    """Rotate the residual stream to its principal components on a text, block by block, and remove
    those that vary least, so that all matrices become smaller dense ones.

    Ashkboos et al. 2024, arXiv:2401.15024, section 3: norms without scales commute with rotations;
    between two blocks the stream is multiplied with Q^T Q' of both their bases, a product that
    takes back a part of the saving. Principal components are those of the normed stream. With a
    share of 0 only rotated, which changes nothing. Tied embeddings are untied. It needs a text.
    """

    saves: ClassVar[tuple[str, ...]] = ("weight bytes", "products")
    Options: ClassVar[type[msgspec.Struct]] = SliceGptOptions

    def __init__(self, options: SliceGptOptions) -> None:
        self._options = options

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        model.check_stream(NAME)
        width = model.hidden_size
        kept = self._kept(width)
        absorb_scales(model)
        bases, explained = self._bases(model, kept)
        if self._options.one_basis:
            bases = [bases[-1]] * len(bases)
        if model.head != model.table or not self._options.one_basis:
            model.untie()
            turn_reads(model, (model.head,), bases[-1])
        turn_reads(model, (model.table,), bases[0])
        for block, own, after in zip(model.blocks, bases, bases[1:], strict=False):
            turn_reads(model, block.reads, own)
            turn_writes(model, block, after)
            if not self._options.one_basis:
                model.put(block.shortcut, (after.T @ own).astype(np.float32))
        # x / sqrt(|x|^2 / D + eps), where |x|^2 is now summed over fewer channels than D
        scale = np.full(kept, math.sqrt(width / kept), np.float32)
        for norm in (*(block.norm for block in model.blocks), model.final_norm):
            model.put(norm, scale)
        eps = model.get_config("rms_norm_eps")
        model.set_config("rms_norm_eps", (1e-6 if eps is None else eps) * width / kept)
        model.set_config("head_dim", model.head_dim)
        model.set_config("hidden_size", kept)
        if not self._options.one_basis:
            model.set_config("residual_shortcuts", True)
        return {"hidden_size": [width, kept], "explained": round(explained, 4)}

    def _kept(self, width: int) -> int:
        multiple = min(self._options.multiple, width)
        kept = round(width * (1 - self._options.share) / multiple) * multiple
        if self._options.share == 0:
            return width
        if not 0 < kept < width:
            raise ConfigError(
                f"{NAME} cannot remove {self._options.share:.0%} of {width} channels in steps of "
                f"{multiple}; give another share or multiple."
            )
        return kept

    def _bases(self, model: Rewritable, kept: int) -> tuple[list[Doubles], float]:
        """Of each block and of the head, the components that vary most (D, kept), and the share of
        the variance that they explain, on average."""
        bases, shares = [], []
        everything = np.zeros((model.hidden_size, model.hidden_size))
        wanted = [block.reads[0] for block in model.blocks]
        for reading in model.read(NAME):
            readers = [model.head] if reading.layer is None else _of_layer(model, reading.layer)
            for name in readers:
                found = reading.inputs[name]
                moments = found.moments.astype(np.float64) / found.rows
                everything += moments / (len(wanted) + 1)
                basis, share = principal(moments, kept)
                bases.append(basis)
                shares.append(share)
        if self._options.one_basis:
            basis, share = principal(everything, kept)
            return [basis] * len(bases), share
        return bases, float(np.mean(shares))


def _of_layer(model: Rewritable, layer: int) -> list[str]:
    return [block.reads[0] for block in model.blocks if block.layer == layer]


def principal(moments: Doubles, kept: int) -> tuple[Doubles, float]:
    """The eigenvectors (D, kept) of the largest eigenvalues, the largest first, and their share."""
    values, vectors = np.linalg.eigh(moments)
    largest = np.argsort(values)[::-1][:kept]
    share = float(values[largest].sum() / values.sum())
    basis: Doubles = np.ascontiguousarray(vectors[:, largest])
    return basis, share
