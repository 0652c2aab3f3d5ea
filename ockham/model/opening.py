"""From a resolved path to a model's description and its weights, whatever the files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ockham.model.converted import ConvertedSource
from ockham.model.description import ModelDescription, describe, read_config
from ockham.model.generation_config import read_generation_config
from ockham.model.packed_layout import METHOD
from ockham.model.prequantised.find import quantization_config
from ockham.model.safetensors_source import SafetensorsSource
from ockham.model.sources import Source


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model of which headers have been read. `config` is its config.json, or what a GGUF file's
    metadata says in its place; so is `generation_config`. The caller closes `source`."""

    config: dict[str, Any]
    description: ModelDescription
    source: Source
    generation_config: dict[str, Any]


def open_model(path: Path) -> OpenedModel:
    """Open a checkpoint's directory or a GGUF file. Raises ModelError if it cannot be read."""
    if path.is_file():
        from ockham.model.gguf.config import describe_gguf
        from ockham.model.gguf.source import GgufSource

        gguf = GgufSource(path)
        try:
            return OpenedModel(
                gguf.config, describe_gguf(gguf.config), gguf, gguf.generation_config
            )
        except BaseException:
            gguf.close()
            raise
    config = read_config(path)
    description = describe(config)
    generation = read_generation_config(path)
    quantised = quantization_config(config) or {}
    if quantised.get("quant_method") == METHOD:
        return OpenedModel(config, description, ConvertedSource(path, quantised), generation)
    return OpenedModel(config, description, SafetensorsSource(path, config), generation)
