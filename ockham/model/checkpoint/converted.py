"""Directories that `ockham convert` writes: packed matrices that need no packing when loaded.

`model.safetensors` is a file of packed weights (see packed/layout.py), and so is BLOCK_FILE, where
the original has a block that drafts. config.json is the original's, but for its
`quantization_config`, where the digests of the weights stand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError, ModelError
from ockham.model.files.safetensors import SINGLE_FILE, SafetensorsFile
from ockham.model.packed.file import PackedFile, PackedLoader, PackedScale
from ockham.model.packed.layout import VERSION
from ockham.model.packed.packing import Packer, plain_format

AGAIN = "convert the original again"

BLOCK_FILE = "model-mtp.safetensors"
"""What holds a block that drafts, apart: the model's weights and their digest are the same without
it."""
WEIGHTS, BLOCK = "weights", "block"
"""The keys of `quantization_config` under which the digests of both files stand."""


class ConvertedSource:
    """A directory that `ockham convert` wrote."""

    harmless: tuple[str, ...] = ()

    def __init__(
        self,
        directory: Path,
        quantised: Mapping[str, Any],
        file: str = SINGLE_FILE,
        digest_key: str = WEIGHTS,
    ) -> None:
        """Raises ModelError if another version wrote it, or a file is missing or damaged."""
        self.directory = directory
        self._quantised = quantised
        version = quantised.get("version")
        if version != VERSION:
            raise ModelError(
                f"{directory} was written by version {version!r} of the format; this Ockham reads "
                f"version {VERSION}. Convert the original again: ockham convert."
            )
        digest = quantised.get(digest_key)
        if not isinstance(digest, str):
            raise ModelError(
                f"{directory / 'config.json'} has no digest of the weights, which `ockham convert` "
                f"writes into its quantization_config; {AGAIN}."
            )
        self.quantised_as: str | None = quantised.get("quantization")
        self._plain = quantised.get("plain")
        self._digest = digest
        self._packed = PackedFile(directory / file, AGAIN)

    def block(self) -> ConvertedSource | None:
        """The block that drafts, opened, if there is one. The caller closes it."""
        if BLOCK not in self._quantised:
            return None
        return ConvertedSource(self.directory, self._quantised, BLOCK_FILE, BLOCK)

    @property
    def files(self) -> list[SafetensorsFile]:
        return [self._packed.file]

    def names(self) -> Collection[str]:
        return self._packed.tensors

    def plain_dtype(self) -> str:
        return "bfloat16" if self._plain == plain_format("bfloat16").name else "float32"

    def measure(self, packer: Packer) -> PackedScale:
        self._refuse_another(packer)
        self._refuse_layout(packer)
        return PackedScale(self._packed)

    def load(self, packer: Packer) -> PackedLoader:
        self._refuse_another(packer)
        self._refuse_layout(packer)
        return PackedLoader(self._packed, self._digest)

    def close(self) -> None:
        self._packed.close()

    def _refuse_another(self, packer: Packer) -> None:
        if packer.asked is not None:
            raise ConfigError(
                f"{self.directory} was converted to {self.quantised_as or 'what it held'}; it "
                f"cannot be loaded as {packer.asked.name}. Convert the original to that."
            )

    def _refuse_layout(self, packer: Packer) -> None:
        own = self._packed.matrix_layout
        if packer.layout.name != own.name:
            raise ConfigError(
                f"{self.directory} holds weights in the layout {own.name!r}, and this backend "
                f"reads {packer.layout.name!r}. Choose the backend that it was converted for, or "
                "load the original."
            )
