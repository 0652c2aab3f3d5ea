"""What transforms share that put zeros into matrices: which matrices, and how many zeros where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError
from ockham.core.seams import Block, LayerReading, Rewritable

SHARE = 0.5


class PruneOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` of the weights of each matrix becomes zero, half of them by default; or all but N of
    each M consecutive inputs of an output, with the `pattern` N:M ("2:4")."""

    share: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.share is not None and self.pattern is not None:
            raise ConfigError("give a share of zeros or a pattern, not both.")
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"share must be above 0 and below 1, got {self.share}.")
        self.kept_of  # noqa: B018

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of a pattern; None without one."""
        if self.pattern is None:
            return None
        found = re.fullmatch(r"([1-9]\d{0,2}):([1-9]\d{0,2})", self.pattern)
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigError(
                f"a pattern is N:M, with N weights of M that stay and N below M, such as 2:4; got "
                f"{self.pattern!r}."
            )
        return int(found[1]), int(found[2])

    @property
    def zeros(self) -> float:
        """The share of zeros."""
        kept = self.kept_of
        if kept is not None:
            return 1 - kept[0] / kept[1]
        return SHARE if self.share is None else self.share


def pruned_matrices(block: Block) -> Iterator[str]:
    """The matrices of a block that are pruned: those of attention, feed-forwards and experts, no
    routers."""
    if block.kind == "attention":
        yield from (*block.reads, *block.writes)
    for each in block.feed_forwards:
        yield from (name for name in (each.gate, each.up, each.down) if name is not None)


def checked_pattern(options: PruneOptions, name: str, inputs: int) -> None:
    """Raises ConfigError for a matrix that has no whole number of the pattern's groups."""
    kept = options.kept_of
    if kept is not None and inputs % kept[1]:
        raise ConfigError(
            f"{name!r} has {inputs} inputs, which are no groups of {kept[1]}: choose another "
            f"pattern than {options.pattern}, or a share."
        )


def least_of(scores: Floats, options: PruneOptions) -> npt.NDArray[np.bool_]:
    """Where the scores (N, K) of each row are the least, so many as the options say: what becomes
    zero. Of equals the first goes."""
    kept = options.kept_of
    rows, inputs = scores.shape
    groups = scores if kept is None else scores.reshape(rows, -1, kept[1])
    width = groups.shape[-1]
    count = round(options.zeros * width) if kept is None else kept[1] - kept[0]
    order = np.argsort(groups, axis=-1, kind="stable")[..., :count]
    found = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(found, order, True, axis=-1)
    return found.reshape(rows, inputs)


def of_layer(model: Rewritable, reading: LayerReading) -> Iterator[Block]:
    return (block for block in model.blocks if block.layer == reading.layer)


def card(model: Rewritable) -> Mapping[str, Any]:
    """The share of zeros in the matrices that are pruned. Raises ConfigError if there are none."""
    zeros = total = 0
    for block in model.blocks:
        for name in pruned_matrices(block):
            values = model.get(name)
            zeros += int(np.count_nonzero(values == 0))
            total += values.size
    if total and not zeros:
        raise ConfigError(
            "no weight became zero: of rows as short as this model's the share is less than one "
            "weight; give a larger one."
        )
    return {"zeros": round(zeros / total, 4)} if total else {}
