"""Rows of heads whose rotary pairs are neighbours in a checkpoint, put in the order of halves while
they are read (`program.weights.halves`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.model.program.weights import halves

Ints64 = npt.NDArray[np.int64]
Rows = TypeVar("Rows", Array, QuantisedRows, BlockRows)


def in_halves(blocks: Iterator[Rows], pairs: tuple[int, int]) -> Iterator[Rows]:
    """Blocks of rows, which begin with a head and end with one, in the other order: as many at a
    time as are whole heads."""
    head = pairs[0]
    rest: list[Any] = []
    for block in blocks:
        own = _each([*rest, block], np.concatenate)
        whole = len(own) // head * head
        rest = [_each([own], partial(_taken, np.arange(whole, len(own))))]
        if whole:
            yield _each([own], partial(_taken, halves(whole, pairs)))


def _taken(rows: Ints64, arrays: Sequence[Array]) -> Array:
    taken: Array = arrays[0][rows]
    return taken


def _each(blocks: Sequence[Any], make: Callable[[Sequence[Array]], Array]) -> Any:
    """A block of what is made of each array of some blocks."""
    first = blocks[0]
    if isinstance(first, np.ndarray):
        return make(blocks)
    values = {
        field.name: [getattr(block, field.name) for block in blocks] for field in fields(first)
    }
    return replace(first, **{k: None if v[0] is None else make(v) for k, v in values.items()})
