"""The state of all layers in NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Longs
from ockham.kernels.base import GroupLayout

Stored = npt.NDArray[np.generic]


class ReferencePlanes:
    """The planes of each group: (layers, planes, pages, page_tokens, heads, width).

    bfloat16 is held as its bits (uint16), which NumPy indexes faster. The memory comes zeroed from
    the system, which backs a page only once it is written.
    """

    layout = "reference-1"

    def __init__(self, groups: Sequence[GroupLayout]) -> None:
        self.groups = tuple(groups)
        self._planes = []
        for group in self.groups:
            layers, planes, _, heads, width = group.stored_shape(0)
            shape = (layers, planes, group.pages, group.page_tokens, heads, width)
            self._planes.append(np.zeros(shape, group.spec.uniform.stored))
        self._place = {
            layer: (number, index)
            for number, g in enumerate(groups)
            for index, layer in enumerate(g.layers)
        }

    def layer(self, layer: int) -> Stored:
        """A layer's keys and values: (2, pages, page_tokens, kv_heads, head_dim), as stored."""
        group, index = self._place[layer]
        plane: Stored = self._planes[group][index]
        return plane

    def store(self, layer: int, slots: Longs, keys: Floats, values: Floats) -> None:
        """Write keys and values (R, kv_heads, head_dim), rounded to the planes' dtype."""
        plane = _by_slot(self.layer(layer), axis=1)
        for kind, rows in enumerate((keys, values)):
            plane[kind, slots] = _rounded(rows, plane.dtype)

    def rounded(self, rows: Floats, group: int) -> Stored:
        """Keys or values as this group stores them."""
        return _rounded(rows, self._planes[group].dtype)

    def copy(
        self,
        group: int,
        source: Longs,
        target: Longs,
        head: int | None = None,
        index: int | None = None,
    ) -> None:
        planes = _by_slot(self._planes[group], axis=2)
        if index is not None:
            planes = planes[index : index + 1]
        if head is not None:
            planes = planes[..., head, :]
        planes[:, :, target] = planes[:, :, source]

    def read(self, group: int, slots: Longs) -> Stored:
        return _by_slot(self._planes[group], axis=2)[:, :, slots]

    def write(self, group: int, slots: Longs, state: Stored) -> None:
        _by_slot(self._planes[group], axis=2)[:, :, slots] = state

    def stored_page_bytes(self, group: int) -> int:
        return self.groups[group].page_bytes

    def read_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        nbytes = self.stored_page_bytes(group)
        for row, page in zip(data, pages.tolist(), strict=True):
            row[at : at + nbytes] = self._planes[group][:, :, page].reshape(-1).view(np.uint8)

    def write_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        nbytes = self.stored_page_bytes(group)
        for row, page in zip(data, pages.tolist(), strict=True):
            place = self._planes[group][:, :, page]
            place[...] = row[at : at + nbytes].view(place.dtype).reshape(place.shape)

    def back(self, group: int, index: int, pages: int) -> None:
        """Left to who writes."""


def _rounded(rows: Floats, dtype: np.dtype[np.generic]) -> Stored:
    if dtype == np.uint16:
        bits: Stored = rows.astype(ml_dtypes.bfloat16).view(np.uint16)
        return bits
    return rows


def _by_slot(planes: Stored, axis: int) -> Stored:
    """A view with the axes (pages, page_tokens), which start at `axis`, made one."""
    shape = planes.shape
    return planes.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def widen(stored: Stored) -> Floats:
    """Stored keys or values as fp32."""
    if stored.dtype == np.uint16:
        wide: Floats = stored.view(ml_dtypes.bfloat16).astype(np.float32)
        return wide
    return stored.view(np.float32)
