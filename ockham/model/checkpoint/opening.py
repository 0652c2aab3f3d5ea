"""From a resolved path to a model's description and its weights, whatever the files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError
from ockham.model.checkpoint.converted import ConvertedSource
from ockham.model.checkpoint.generation_config import read_generation_config
from ockham.model.checkpoint.gguf.gemma4 import BACKBONE
from ockham.model.checkpoint.prequantised.find import quantization_config
from ockham.model.checkpoint.safetensors_source import SafetensorsSource
from ockham.model.checkpoint.sources import Source
from ockham.model.packed.layout import METHOD
from ockham.model.program.description import ModelDescription, describe, read_config
from ockham.model.program.pooling import read_pooling


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model of which headers have been read. `config` is its config.json, or what a GGUF file's
    metadata says in its place; so is `generation_config`. `notes` are sentences about what was
    found, `metadata` a GGUF file's own. The caller closes `source`."""

    config: dict[str, Any]
    description: ModelDescription
    source: Source
    generation_config: dict[str, Any]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None


def open_model(path: Path) -> OpenedModel:
    """Open a checkpoint's directory or a GGUF file. Raises ModelError if it cannot be read."""
    if not path.is_dir():
        from ockham.model.checkpoint.gguf.source import GgufSource

        gguf = GgufSource(path)
        if BACKBONE in gguf.config:
            gguf.close()
            raise ModelError(
                f"{path} is an assistant of Gemma 4, which drafts for a model: load that, with "
                '--speculative-config \'{"method": "mtp", "model": "FILE"}\'.'
            )
        generation = gguf.generation_config
        return OpenedModel(gguf.config, gguf.description, gguf, generation, metadata=gguf.metadata)
    config = read_config(path)
    description = _with_pooling(describe(config), path)
    generation = read_generation_config(path)
    quantised = quantization_config(config) or {}
    if quantised.get("quant_method") == METHOD:
        return OpenedModel(config, description, ConvertedSource(path, quantised), generation)
    folders = () if description.pooling is None else description.pooling.folders
    source = SafetensorsSource(path, config, description, folders)
    try:
        head = source.own_head(description) if description.tied_embeddings else None
    except BaseException:
        source.close()
        raise
    if head is None:
        return OpenedModel(config, description, source, generation)
    note = (
        f"config.json ties the head to the embedding, but the checkpoint holds another head, "
        f"{head!r}: the stored one is used."
    )
    untied = {**config, "tie_word_embeddings": False}  # so that a conversion says it too
    text = description.architecture.text_config
    if text is not None and config.get(text) is not None:
        untied[text] = {**config[text], "tie_word_embeddings": False}
    described = _with_pooling(describe(untied), path)
    return OpenedModel(untied, described, source, generation, (note,))


def _with_pooling(description: ModelDescription, path: Path) -> ModelDescription:
    """With the rule that sentence-transformers wrote beside the weights, if it did. The head of a
    classifier stands in config.json, and no such rule."""
    if description.pooling is not None and description.pooling.classifies:
        return description
    found = read_pooling(path, description.hidden_size)
    return description if found is None else replace(description, pooling=found)
