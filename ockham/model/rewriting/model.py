"""A model under transforms: what changed is held in fp32, the rest stays in its file."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.core.seams import Block, LayerGradients, LayerReading
from ockham.model.calibration import CalibrationText
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.checkpoint.sources import Loader, Scale, TensorSource
from ockham.model.files.safetensors import DTYPES
from ockham.model.files.weights_file import WeightsFile
from ockham.model.packed.packing import Packer, Stored
from ockham.model.program.description import ModelDescription, describe
from ockham.model.program.unequal import EXPERT_WIDTHS
from ockham.model.program.weights import Part
from ockham.model.rewriting.anatomy import fused, is_whole, look_at
from ockham.model.rewriting.gradients import read_back
from ockham.model.rewriting.reading import read_layers

BLOCK_ROWS = 1024

ReadText = Callable[[], CalibrationText]


class RewrittenModel:
    """A `Rewritable` over an opened checkpoint, which stays open until `source` is closed.

    It takes four bytes for each value of a tensor that was changed."""

    def __init__(
        self,
        opened: OpenedModel,
        tell: Callable[[str], None],
        text: ReadText | None = None,
    ) -> None:
        """`text` reads the calibration text, where one was given. Raises ModelError for a model
        that cannot be looked at."""
        self._opened, self._text = opened, text
        self._base: TensorSource = opened.source  # type: ignore[assignment]
        self.tell = tell
        self.config: dict[str, Any] = dict(opened.config)
        self._changed: dict[str, Floats] = {}
        self._untied = False
        self._anatomy = look_at(opened.description, self._base.has)
        d = opened.description
        self.layers, self.vocab_size = d.layers, d.vocab_size
        self.heads, self.kv_heads, self.head_dim = d.heads, d.kv_heads, d.head_dim
        self.activation = d.activation

    @property
    def hidden_size(self) -> int:
        return self.description.hidden_size

    @property
    def blocks(self) -> Sequence[Block]:
        return self._anatomy.blocks

    @property
    def table(self) -> str:
        return self._anatomy.table

    @property
    def head(self) -> str:
        return self._own_head if self._untied else self._anatomy.head

    @property
    def final_norm(self) -> str:
        return self._anatomy.final_norm

    @property
    def description(self) -> ModelDescription:
        """As config.json describes it now."""
        return describe(self.config)

    def untie(self) -> None:
        if self.head == self.table:
            self._changed[self._own_head] = self.get(self.table)
            self._untied = True
            self.set_config("tie_word_embeddings", False)

    def get(self, name: str) -> Floats:
        if name in self._changed:
            return self._changed[name].copy()
        anatomy = self._anatomy
        if name in anatomy.vectors:
            part = Part(name, (anatomy.vectors[name],), 0, 1)
            values = self._stored(part).reshape(-1)
            return values + np.float32(self._offset(name))
        part = anatomy.slices.get(name)  # type: ignore[assignment]
        if part is None:
            raise ModelError(f"the model has no tensor {name!r}.")
        return self._stored(part)

    def put(self, name: str, values: Floats) -> None:
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {name!r} would hold NaN or infinity.")
        self._changed[name] = np.array(values, np.float32)

    def get_config(self, key: str) -> Any:
        return self._text_config().get(key)

    def set_config(self, key: str, value: Any) -> None:
        config = self._text_config()
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value

    def set_widths(self, widths: Sequence[Sequence[int]], routed: bool) -> None:
        flat = [width for layer in widths for width in layer]
        record = self._opened.description.architecture.experts
        if routed and record is not None:
            even = len(set(flat)) == 1
            self.set_config(record.intermediate, max(flat))
            self.set_config(EXPERT_WIDTHS, None if even else [list(layer) for layer in widths])
            return
        key = self._opened.description.architecture.intermediate
        self.set_config(key, flat[0] if len(set(flat)) == 1 else flat)

    def check_stream(self, what: str) -> None:
        if self._anatomy.obstacles:
            raise ConfigError(
                f"{what} cannot rewrite {self._opened.description.architecture.name}: "
                f"{'; '.join(self._anatomy.obstacles)}. Leave {what} out."
            )

    def read(self, what: str) -> Iterator[LayerReading]:
        text = self._read_text(what)
        return read_layers(self.source("float32"), self.description, text.windows)

    def gradients(self, what: str) -> Iterator[LayerGradients]:
        text = self._read_text(what)
        return read_back(self.source("float32"), self.description, text.windows)

    def source(self, dtype: str) -> RewrittenSource:
        """The tensors as they are now, whose changed ones are stored as `dtype` (float32 or
        bfloat16). Closing it closes the checkpoint."""
        return RewrittenSource(self._opened, self._base, self._stored_tensors(), dtype)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Floats]]]:
        """Every tensor that the model needs, as it is stored: name, shape, and what reads it."""
        source = self.source("float32")
        found = look_at(self.description, source.has)
        for name, parts in fused(found.slices):
            shape = found.slices[parts[0]].shape
            part = Part(name, shape, 0, math.prod(shape[:-1]))
            yield name, shape, lambda part=part: _whole(source, part)  # type: ignore[misc]
        for name, length in found.vectors.items():
            part = Part(name, (length,), 0, 1)
            yield name, (length,), lambda part=part: _whole(source, part)  # type: ignore[misc]

    @property
    def _own_head(self) -> str:
        return self._opened.description.architecture.heads[0]

    def _text_config(self) -> dict[str, Any]:
        key = self._opened.description.architecture.text_config
        if key is None:
            return self.config
        inner: dict[str, Any] = self.config.setdefault(key, {})
        return inner

    def _read_text(self, what: str) -> CalibrationText:
        if self._text is None:
            raise ConfigError(
                f"{what} looks at what the model does with a text: add --calibration FILE."
            )
        return self._text()

    def _offset(self, name: str) -> float:
        offset = self._opened.description.architecture.norm_offset
        return offset if name in self._anatomy.norms else 0.0

    def _stored(self, part: Part) -> Floats:
        return _whole(self._base, part)

    def _stored_tensors(self) -> dict[str, Floats]:
        """The changed tensors under the names and in the shapes of the checkpoint."""
        anatomy, changed = self._anatomy, dict(self._changed)
        stored: dict[str, Floats] = {}
        for name, parts in fused(anatomy.slices):
            if not any(part in changed for part in parts):
                continue
            if parts == [name] and is_whole(anatomy.slices[name]):
                stored[name] = changed.pop(name)
                continue
            values = {part: changed.pop(part, None) for part in parts}
            filled = {
                part: self.get(part) if found is None else found for part, found in values.items()
            }
            stored |= self._joined(name, filled)
        for name, values_of in changed.items():
            offset = np.float32(self._offset(name))
            stored[name] = values_of - offset if offset else values_of
        return stored

    def _joined(self, name: str, parts: dict[str, Floats]) -> dict[str, Floats]:
        """A tensor that was seen in slices: whole again, or where stacked experts have become of
        unequal shapes, one by one."""
        shape = self._anatomy.slices[next(iter(parts))].shape
        whole = list(parts.values())
        if len(shape) == 2:
            return {name: np.concatenate(whole)}
        if len({each.shape for each in whole}) == 1:
            joined = np.concatenate(whole)
            return {name: joined.reshape(shape[0], -1, joined.shape[1])}
        raise ConfigError(
            f"the experts of {name!r} are stored stacked and would get unequal widths; give them "
            "equal ones."
        )


class RewrittenSource:
    """A checkpoint some of whose tensors were changed, as the loader reads it."""

    quantised_as: str | None = None

    def __init__(
        self, opened: OpenedModel, base: TensorSource, changed: dict[str, Floats], dtype: str
    ) -> None:
        self._opened, self._base, self._changed = opened, base, changed
        self._plain_dtype, self._dtype = dtype, "BF16" if dtype == "bfloat16" else "F32"
        self.harmless = opened.source.harmless

    @property
    def files(self) -> Sequence[WeightsFile]:
        return self._opened.source.files

    def names(self) -> Collection[str]:
        return {*self._opened.source.names(), *self._changed}

    def plain_dtype(self) -> str:
        return self._plain_dtype

    def measure(self, packer: Packer) -> Scale:
        return Scale(self, packer)

    def load(self, packer: Packer) -> Loader:
        return Loader(self, packer)

    def close(self) -> None:
        self._opened.source.close()

    def has(self, name: str) -> bool:
        return name in self._changed or self._base.has(name)

    def stored(self, part: Part) -> Stored:
        values = self._changed.get(part.name)
        if values is None:
            return Stored(self._dtype, self._base.stored(part).tensors)
        if values.shape != part.shape:
            raise ModelError(
                f"tensor {part.name!r} has the shape {list(values.shape)} after the transforms; "
                f"config.json says {list(part.shape)}."
            )
        return Stored(self._dtype, (part.name,))

    def rows(self, part: Part) -> Iterator[Array]:
        dtype = DTYPES[self._dtype]
        values = self._changed.get(part.name)
        if values is None:
            for block in self._base.rows(part):
                yield block.astype(dtype)
            return
        rows = values.reshape(-1, values.shape[-1])[part.start : part.stop]
        for first in range(0, len(rows), BLOCK_ROWS):
            yield rows[first : first + BLOCK_ROWS].astype(dtype)

    def blocks(self, part: Part) -> Iterator[BlockRows]:
        raise ModelError(f"tensor {part.name!r} is not stored in blocks.")

    def quantised(self, part: Part) -> Iterator[QuantisedRows]:
        raise ModelError(f"tensor {part.name!r} is not quantised.")


def _whole(source: TensorSource, part: Part) -> Floats:
    """A part's rows in fp32, (rows, columns)."""
    source.stored(part)
    blocks = [np.array(block, np.float32) for block in source.rows(part)]
    return np.concatenate(blocks)
