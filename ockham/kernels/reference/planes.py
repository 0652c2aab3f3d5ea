"""The state of all layers in NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints, Longs
from ockham.kernels.base import GroupLayout
from ockham.kernels.layout import PlaneSpec
from ockham.kernels.reference.alike import alike
from ockham.kernels.reference.stored import CODECS, Codec, Mirrored, Stored

Held = dict[int, tuple[int, list[Ints]]]
"""By slot, what the row of that slot's key chose (`core.choices.Choice`): how many keys it saw, and
its blocks with each key-value head."""


class Side(NamedTuple):
    """The keys of a layer, or its values, as stored (pages, page_tokens, heads, items of a row),
    and what they mean."""

    stored: Stored
    codec: Codec


class ReferencePlanes:
    """The state of each group: (layers, planes, pages, page_tokens, heads, items of a row), with
    planes whose rows differ as `GroupLayout.stored_shape` says. The memory comes zeroed from the
    system, which backs a page only once it is written.
    """

    layout = "reference-1"

    def __init__(self, groups: Sequence[GroupLayout]) -> None:
        self.groups = tuple(groups)
        self._planes = []
        for group in self.groups:
            layers, planes, _, heads, items = group.stored_shape(0)
            shape = (layers, planes, group.pages, group.page_rows, heads, items)
            self._planes.append(np.zeros(shape, group.spec.uniform.stored))
        self.held: dict[tuple[int, int], Held] = {}
        """By group and layer, of the layers that read the group's keys."""
        self._place: dict[int, tuple[int, int]] = {}
        for number, g in enumerate(groups):
            for index, layer in enumerate(g.layers):
                if layer not in self._place or g.spec.attends:
                    self._place[layer] = (number, index)

    def layer(self, layer: int) -> list[Side]:
        """A layer's keys and values, or where it has none what it keeps in its first group; of a
        latent plane the keys alone, which are the values too."""
        group, index = self._place[layer]
        return self.sides(group, index, self._planes[group][index])

    def rows(self, layer: int, group: int) -> npt.NDArray[np.float32]:
        """What a layer without keys and values keeps in one of its groups: (pages, rows of a page,
        width)."""
        index = self.groups[group].layers.index(layer)
        found: npt.NDArray[np.float32] = self._planes[group][index, 0, :, :, 0]
        return found

    def sides(self, group: int, index: int, state: Stored) -> list[Side]:
        """The keys and values of layer `index` of a group in what `read` gave of that layer."""
        return sides_of(self.groups[group], index, state)

    def store(self, layer: int, slots: Longs, *kept: Floats) -> None:
        """Write keys and values (R, kv_heads, head_dim), or keys alone, rounded to the planes'
        types."""
        for (stored, codec), rows in zip(self.layer(layer), kept, strict=True):
            pages, cells = np.divmod(slots, stored.shape[1])
            stored[pages, cells] = codec.store(rows)

    def store_rows(self, layer: int, slots: Longs, rows: Floats) -> None:
        """Write what a layer without keys and values keeps of tokens, (R, width), of those whose
        slot is not negative."""
        ((stored, codec),) = self.layer(layer)
        kept = slots >= 0
        pages, cells = np.divmod(slots[kept], stored.shape[1])
        stored[pages, cells] = codec.store(rows[kept][:, None])

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
        if self.held and head is None and index is None:
            moves = list(zip(source.tolist(), target.tolist(), strict=True))
            for held in [held for (own, _), held in self.held.items() if own == group]:
                found = [held.get(slot) for slot, _ in moves]
                for (_, slot), choice in zip(moves, found, strict=True):
                    held.pop(slot, None)
                    if choice is not None:
                        held[slot] = choice

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

    def read_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        whole = np.empty((1, self.stored_page_bytes(group)), np.uint8)
        self.read_pages(group, np.array([page]), whole, 0)
        data[:] = whole[0, start : start + len(data)]

    def write_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        pages, whole = np.array([page]), np.empty((1, self.stored_page_bytes(group)), np.uint8)
        self.read_pages(group, pages, whole, 0)
        whole[0, start : start + len(data)] = data
        self.write_pages(group, pages, whole, 0)

    def alike(self, group: int, slots: Longs) -> Ints:
        layers, spec = range(len(self._planes[group])), self.groups[group].spec
        orders: Ints = np.empty((len(layers), spec.uniform.heads, len(slots)), np.int32)
        for layer in layers:
            stored, codec = self.sides(group, layer, self._planes[group][layer])[0]
            keys = codec.widen(_by_slot(stored, axis=0)[slots])
            for head in range(spec.uniform.heads):
                orders[layer, head] = alike(keys[:, head])
        return orders

    def back(self, group: int, index: int, pages: int) -> None:
        """Left to who writes."""


def sides_of(layout: GroupLayout, index: int, state: Stored) -> list[Side]:
    """The keys and values of a layout's layer `index`, whose state (planes, ..., items) this is."""
    keys, *others = sides(state, layout.spec.planes)
    if layout.mirrors is not None:
        keys = Side(keys.stored, Mirrored(keys.codec, layout.mirrors[index]))
    return [keys, *others]


def sides(state: Stored, planes: Sequence[PlaneSpec]) -> list[Side]:
    """The parts of one layer's state (planes, ..., items), which are views of it: one for each
    plane."""
    codecs = [CODECS[plane.dtype] for plane in planes]
    if len(state) == len(planes):
        return [Side(each, codec) for each, codec in zip(state, codecs, strict=True)]
    ends = np.cumsum([plane.row_items for plane in planes])[:-1]
    parts = np.split(state[0], ends, axis=-1)
    return [Side(each, codec) for each, codec in zip(parts, codecs, strict=True)]


def _by_slot(planes: Stored, axis: int) -> Stored:
    """A view with the axes (pages, page_tokens), which start at `axis`, made one."""
    shape = planes.shape
    return planes.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
