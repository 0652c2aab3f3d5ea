"""Narrower feed-forwards and layers without attention as alternatives: what each does alone, and
how a model gets those that were chosen.

A feed-forward keeps the channels whose values times weights are largest on the text (the score of
Wanda, arXiv:2306.11695, for whole channels), and what is left of `down` is fitted to what all of it
gave. One that is dropped keeps the narrowest width, so that its operation, after which hidden
states are seen, stays in the program. An attention that is dropped leaves the program, and its
layer keeps no state.

A narrower residual stream is no alternative here: it changes the input of every layer, so that it
has no score of its own beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ockham.core.arrays import Doubles, Floats, Longs
from ockham.core.errors import ConfigError
from ockham.core.registry import make
from ockham.core.seams import Correction, Format, Layout, Rewritable, SizedFormat
from ockham.kernels.corrected import correction_bytes
from ockham.kernels.ops import AttentionInput, AttentionOutput, Experts, FeedForward, Program
from ockham.lab.compress.choosing import Alternative
from ockham.lab.compress.score import Score
from ockham.lab.compress.units import STORED, Unit, fits
from ockham.model.mixing import form_of
from ockham.model.program.unequal import WITHOUT_ATTENTION
from ockham.model.program.weights import matrix_shape
from ockham.weights.widths import (
    compensated,
    feed_forwards,
    narrow,
    read_inner,
    value_scores,
    width_of,
)

WHOLE = "whole"
DROPPED = "dropped"
_STEPS = ((2048, 256), (512, 64), (0, 32))
"""From so many channels on, widths are multiples of so many: what formats have in a group."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a block may become: `width` is that of a feed-forward, 0 of an attention that goes."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Shaped:
    """A block that may get smaller. `matrices` are the keys of its packed matrices, the last of
    which writes to the residual stream; `inner` are the inputs of that one."""

    layer: int
    kind: Literal["attention", "feed_forward"]
    matrices: tuple[str, ...]
    inner: int
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        return f"layer.{self.layer}.{self.kind}"

    @property
    def writes(self) -> str:
        return self.matrices[-1]


def check_widths(widths: Sequence[float]) -> None:
    """Raises ConfigError for what is no share of a width."""
    for width in widths:
        if not 0 < width < 1:
            raise ConfigError(
                f"--widths must lie between 0 and 1, got {width}: each is the share of the "
                "channels that a feed-forward may keep, such as 0.5."
            )


def blocks_of(
    program: Program, keys: Mapping[int, str], widths: Sequence[float], drop: bool
) -> Iterator[Shaped]:
    """The blocks of a model that may have another shape, in the order of the program: the
    feed-forwards of a model without experts, and attentions that add nothing but their product to
    the stream. `keys` are those of matrices by identity."""
    reads = ""
    routed = any(isinstance(op, Experts) for op in program.ops)
    for op in program.ops:
        if isinstance(op, FeedForward) and not routed and op.inner_norm is None:
            whole = op.down.in_features
            step = next(step for least, step in _STEPS if whole >= least)
            found = {
                width: f"{width} channels"
                for share in sorted(widths, reverse=True)
                if (width := width_of(whole, share, step)) < whole
            }
            if drop and step < whole:
                found[step] = DROPPED
            matrices = (keys[id(op.gate_up)], keys[id(op.down)])
            shapes = tuple(Shape(name, width) for width, name in found.items())
            if shapes:
                yield Shaped(op.layer, "feed_forward", matrices, whole, shapes)
        elif isinstance(op, AttentionInput):
            reads = keys[id(op.qkv)]
        elif isinstance(op, AttentionOutput) and drop and _adds_only(op):
            matrices = (reads, keys[id(op.out)])
            shapes = (Shape(DROPPED, 0),)
            yield Shaped(op.layer, "attention", matrices, op.out.in_features, shapes)


def _adds_only(op: AttentionOutput) -> bool:
    """Whether it does nothing to the stream but add a product."""
    beside = (op.bias, op.stream_norm, op.shortcut)
    return not op.values and all(each is None for each in beside)


def kept_channels(down: Floats, moments: Floats, width: int) -> Longs:
    """The channels whose values times weights are largest, in their order: of W (D, I) and the
    second moments (I, I) of its inputs."""
    scores: Doubles = moments.diagonal() * np.square(down.astype(np.float64)).sum(axis=0)
    return np.sort(np.argsort(-scores, kind="stable")[:width])


def writing(down: Floats, moments: Floats, shape: Shape) -> Floats:
    """The matrix (D, I) of a block of another shape with 0 in the place of what went: its products
    are those of the smaller one."""
    made = np.zeros_like(down)
    if shape.width:
        channels = kept_channels(down, moments, shape.width)
        made[:, channels] = compensated(down, moments, channels)
    return made


@dataclass(frozen=True, slots=True)
class Reshaping:
    """A transform: the feed-forwards of some layers narrower, some layers without attention."""

    widths: Mapping[int, int]
    """Of feed-forwards, by layer."""
    without_attention: tuple[int, ...]

    def apply(self, model: Rewritable) -> Mapping[str, Any]:
        layers = {
            each.down: block.layer
            for block in model.blocks
            for each in block.feed_forwards
            if each.number is None
        }
        names = [name for name in feed_forwards(model) if layers.get(name) in self.widths]
        facts: dict[str, Any] = {"layers_without_attention": list(self.without_attention)}
        if names:
            inputs = read_inner(model, "compress", names)
            scores = value_scores(model, inputs)
            kept = {
                name: np.sort(np.argsort(-scores[name], kind="stable")[: self.widths[layers[name]]])
                for name in names
            }
            facts |= narrow(model, kept, inputs, compensate=True)
        if self.without_attention:
            model.set_config(WITHOUT_ATTENTION, list(self.without_attention))
        return facts


def alternatives_of(
    units: Sequence[Unit],
    formats: Sequence[Sequence[Alternative]],
    blocks: Sequence[Shaped],
    layout: Layout,
) -> list[list[Alternative]]:
    """The alternatives of units, those of blocks in each of their shapes. `formats` are those of
    whole units; seconds of a narrower one are the share that stays."""
    owners = {key: block for block in blocks for key in block.matrices}
    found = []
    for unit, own in zip(units, formats, strict=True):
        block = owners.get(unit.matrices[0])
        if block is None:
            found.append(list(own))
            continue
        shaped = [replace(each, block=block.name, shape=WHOLE) for each in own]
        narrowed = unit.matrices[0] == block.writes
        for shape in block.shapes:
            if shape.width == 0:
                gone = Alternative(STORED, 0, 0.0, block=block.name, shape=shape.name)
                shaped.append(gone)
                continue
            share = shape.width / block.inner
            shaped += [
                replace(
                    each,
                    nbytes=_narrowed_bytes(unit, each, share, narrowed, layout),
                    seconds=each.seconds * share,
                    block=block.name,
                    shape=shape.name,
                )
                for each in own
                if not narrowed or each.form == STORED or fits(each.form, shape.width)
            ]
        found.append(shaped)
    return found


def _narrowed_bytes(
    unit: Unit, whole: Alternative, share: float, inputs: bool, layout: Layout
) -> int:
    """Bytes of a unit of which a share of the inputs, or else of the outputs, stays. What a layout
    holds beside weights, such as a scale for each row, does not get less with the inputs. Formats
    whose room depends on values are taken to get less as weights do."""
    quantization, correction = form_of(whole.form)
    made: Format | None = None if whole.form == STORED else make("format", quantization)
    if made is None or isinstance(made, SizedFormat):
        return round(whole.nbytes * share)
    nbytes = 0
    for piece in unit.pieces:
        rows, columns = matrix_shape([tensor.part for tensor in piece])
        rows, columns = (rows, round(columns * share)) if inputs else (round(rows * share), columns)
        nbytes += layout.nbytes(made, rows, columns, False)
        if correction is not None:
            added: Correction = make("correction", correction)
            nbytes += correction_bytes(rows, columns, min(added.rank, rows, columns))
    return nbytes


def choices_of(block: Shaped, scores: Sequence[Score]) -> list[Alternative]:
    """What the shapes of a block cost beside the formats of its units."""
    whole = Alternative(WHOLE, 0, 0.0, block=block.name, shape=WHOLE)
    return [
        whole,
        *(
            Alternative(each.form, 0, each.loss or 0.0, block=block.name, shape=each.form)
            for each in scores
        ),
    ]


def reshaping_of(blocks: Sequence[Shaped], chosen: Sequence[str]) -> Reshaping | None:
    """What gives a model the shapes that were chosen for its blocks; None where all stay whole."""
    widths: dict[int, int] = {}
    without = []
    for block, name in zip(blocks, chosen, strict=True):
        shape = next((each for each in block.shapes if each.name == name), None)
        if shape is not None and shape.width:
            widths[block.layer] = shape.width
        elif shape is not None:
            without.append(block.layer)
    return Reshaping(widths, tuple(without)) if widths or without else None
