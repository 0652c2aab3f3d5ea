"""Scales that are moved between activations and weights: where they can go, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Block, Rewritable
from ockham.weights.stream import scale_columns


@dataclass(frozen=True, slots=True)
class Joint:
    """A place where inputs of matrices may be scaled by s (K,) and what makes them by 1 / s, which
    leaves the function as it is. `reads` share their inputs. `repeats` is how many inputs share a
    scale, by `shared`: the heads of a group read the same values."""

    reads: tuple[str, ...]
    block: Block
    norm: str | None = None
    rows: tuple[str, int] | None = None
    """The matrix that makes the inputs, and its first row that does."""
    bias: tuple[str, int] | None = None
    heads: bool = False


def joints(block: Block, inner: bool) -> Iterator[Joint]:
    """Of a block: behind its norm, and with `inner` between values and the output projection and
    between up and down projections."""
    if block.norm:
        yield Joint(block.reads, block, norm=block.norm)
    if not inner:
        return
    if block.value is not None:
        yield Joint(block.writes, block, rows=block.value, bias=block.value_bias, heads=True)
    for each in block.feed_forwards:
        if each.gate is not None:  # what is not gated has its activation in between
            bias = None if each.up_bias is None else (each.up_bias, 0)
            yield Joint((each.down,), block, rows=(each.up, 0), bias=bias)


def shared(model: Rewritable, joint: Joint, values: Floats) -> Floats:
    """Values (K,) of inputs, of which those that must share a scale have the largest of them."""
    if not joint.heads or model.heads == model.kv_heads:
        return values
    by_group = values.reshape(model.kv_heads, -1, model.head_dim)
    largest = by_group.max(axis=1, keepdims=True)
    return np.broadcast_to(largest, by_group.shape).reshape(-1)


def scale(model: Rewritable, joint: Joint, scales: Floats) -> None:
    """Multiply the weights of the inputs by `scales` (K,), and divide what makes them."""
    if joint.norm is not None:
        scale_columns(model, joint.norm, joint.reads, scales)
        return
    for name in joint.reads:
        model.put(name, model.get(name) * scales)
    assert joint.rows is not None
    if joint.heads:
        by_group = scales.reshape(model.kv_heads, -1, model.head_dim)
        scales = np.ascontiguousarray(by_group[:, 0]).reshape(-1)
    for name, first in [joint.rows] if joint.bias is None else [joint.rows, joint.bias]:
        values = model.get(name)
        own = values[first : first + len(scales)]
        own /= scales if values.ndim == 1 else scales[:, None]
        model.put(name, values)
