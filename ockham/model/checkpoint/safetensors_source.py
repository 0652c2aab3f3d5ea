"""Weights in safetensors files, plain or in one of the layouts of `prequantised`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ockham.core.arrays import Array
from ockham.core.errors import ModelError
from ockham.core.quantised import BlockRows, QuantisedRows
from ockham.model.checkpoint.prequantised.find import find_codec
from ockham.model.checkpoint.sources import Loader, Scale
from ockham.model.files.safetensors import DTYPES, Checkpoint
from ockham.model.files.weights_file import WeightsFile
from ockham.model.packed.packing import Packer, Stored
from ockham.model.program.architectures import ARCHITECTURES
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part

TABLES = tuple({f"{record.table}.weight" for record in ARCHITECTURES.values()})
"""Ends of the names of tables of embeddings."""


class SafetensorsSource:
    """A Hugging Face checkpoint's directory; config.json says how it is quantised, if it is.

    Of a quantised matrix the codes are read whole (half a byte or a byte a weight) where they are
    stored by inputs, since outputs are needed.
    """

    quantised_as: str | None = None

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        description: ModelDescription,
        folders: Sequence[str] = (),
    ) -> None:
        """The weights of the directory, and of these folders in it under their names.

        Raises ModelError if a file is missing or damaged, or the layout is unknown."""
        self._codec = find_codec(config, description)
        self.harmless: tuple[str, ...] = () if self._codec is None else self._codec.harmless
        self._checkpoint = Checkpoint(directory)
        try:
            for folder in folders:
                self._checkpoint.add_folder(folder)
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> Sequence[WeightsFile]:
        return self._checkpoint.files

    def names(self) -> Collection[str]:
        return self._checkpoint.tensors

    def plain_dtype(self) -> str:
        """That of the embeddings."""
        stored = {
            tensor.dtype
            for name, tensor in self._checkpoint.tensors.items()
            if name.endswith(TABLES)
        }
        return "bfloat16" if stored == {"BF16"} else "float32"

    def measure(self, packer: Packer) -> Scale:
        return Scale(self, packer)

    def load(self, packer: Packer) -> Loader:
        return Loader(self, packer)

    def close(self) -> None:
        self._checkpoint.close()

    def own_head(self, description: ModelDescription) -> str | None:
        """The name of a head that is stored beside the embedding and has other values, if there is
        one. Reads both; the first difference ends it."""
        record, tensors = description.architecture, self._checkpoint.tensors
        heads = [tensors[name] for name in record.heads if name in tensors]
        tables = [
            tensors[name]
            for prefix in record.prefixes
            if (name := prefix + "embed_tokens.weight") in tensors
        ]
        if not heads or not tables or any(self._owns(t.name) for t in (heads[0], tables[0])):
            return None
        return heads[0].name if self._checkpoint.differ(heads[0], tables[0]) else None

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors or self._owns(name)

    def stored(self, part: Part) -> Stored:
        if self._codec is not None and self._owns(part.name):
            stored = self._codec.stored(self._checkpoint, part)
            beside = part.name in self._checkpoint.tensors and part.name not in stored.tensors
            if beside and self._plain(part.name):
                raise ModelError(
                    f"the checkpoint holds tensor {part.name!r} twice, quantised and not."
                )
            return stored
        tensor = self._checkpoint.find(part.name, part.shape)
        return Stored(tensor.dtype, (part.name,))

    def rows(self, part: Part) -> Iterator[Array]:
        if not self._owns(part.name):
            tensor = self._checkpoint.find(part.name, part.shape)
            yield from self._checkpoint.blocks(tensor, part.start, part.stop)
            return
        if self._codec is not None and self.stored(part).encoding is None:
            yield from self._codec.floats(self._checkpoint, part)
            return
        for block in self.quantised(part):
            try:
                yield block.widened()
            except ValueError as error:
                raise ModelError(f"tensor {part.name!r}: {error}.") from None

    def blocks(self, part: Part) -> Iterator[BlockRows]:
        if self._codec is None:
            raise ModelError(f"tensor {part.name!r} is not stored in blocks.")
        yield from self._codec.blocks(self._checkpoint, part)

    def quantised(self, part: Part) -> Iterator[QuantisedRows]:
        if self._codec is None:
            raise ModelError(f"tensor {part.name!r} is not quantised.")
        encoding = self._codec.stored(self._checkpoint, part).encoding
        for block in self._codec.quantised(self._checkpoint, part):
            fault = None if encoding is None else block.fault(encoding)
            if fault is not None:
                raise ModelError(f"tensor {part.name!r}: {fault}.")
            yield block

    def _owns(self, name: str) -> bool:
        return self._codec is not None and self._codec.owns(self._checkpoint, name)

    def _plain(self, name: str) -> bool:
        """Whether the tensor of this very name holds floats."""
        return self._checkpoint.tensors[name].dtype in DTYPES
