"""From the files of a model to its program: packed weights from the cache, or packed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ockham.core.errors import ModelError
from ockham.kernels.ops import Program
from ockham.model.checkpoint.sources import LoadedWeights, Source
from ockham.model.packed.file import PackedLoader
from ockham.model.packed.packing import Packer
from ockham.model.packed.weight_cache import Entry, WeightCache, identity_of
from ockham.model.program.weights import Weights
from ockham.model.upkeep import Upkeep, settling

Compile = Callable[[Weights], Program]


def place_weights(
    source: Source,
    packer: Packer,
    compiled: Compile,
    *,
    cache: WeightCache | None,
    facts: Mapping[str, Any],
    tell: Callable[[str], None],
) -> tuple[Program, str]:
    """A program with its weights, and their digest.

    `facts` say what, beside the files and the packer's layout, decides the packed bytes. Mapped
    weights are moved into memory, and packed ones written to the cache, in the background. Raises
    ModelError naming the tensor if a file is damaged."""
    layout = packer.layout.name
    identity = None if cache is None else identity_of(source.files, layout, facts)
    entry = None if cache is None or identity is None else cache.find(identity)
    if entry is not None and cache is not None:
        try:
            placed = _from_cache(entry, compiled)
        except ModelError as error:
            tell(f"packed weights are damaged and will be packed anew: {error}")
            cache.discard(entry)
        else:
            tell(f"the packed weights come from {entry.directory}")
            return placed
    weights = source.load(packer)
    program = compiled(weights)
    digest = weights.digest()
    unchanged = identity is not None and identity == identity_of(source.files, layout, facts)
    if cache is not None and identity is not None and unchanged:
        job = cache.keep(identity, digest, weights.packed)
        if job is not None:
            Upkeep(job, lasting=True)
    _settle(weights)
    return program, digest


def _from_cache(entry: Entry, compiled: Compile) -> tuple[Program, str]:
    file = entry.open()
    try:
        weights = PackedLoader(file, entry.digest)
        program = compiled(weights)
    finally:
        file.close()
    _settle(weights)
    return program, entry.digest


def _settle(weights: LoadedWeights) -> None:
    if weights.mapped:
        Upkeep(settling(weights.mapped), lasting=False)
