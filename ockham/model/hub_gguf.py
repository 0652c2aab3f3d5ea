"""Which GGUF file of a repository is meant, and which is the best for this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ockham.core.errors import ModelError
from ockham.core.units import readable
from ockham.model.checkpoint.gguf.names import is_projector, part_name
from ockham.model.known_models import QUANTISATION

BEST_FIRST = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q4_K_M", "Q4_K_S", "MXFP4", "MXFP4_MOE", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S"),
    *("BF16", "F16", "F32"),
)
"""What is chosen from unasked. Beyond eight bits a file takes twice the memory and time for answers
that hardly differ, so such a file is taken only where there is no other. Files of fewer than three
bits are run where they are named: their answers are much worse."""

HELD = {"F16": 2.0}
"""How many times the file's bytes its weights take when loaded; once where not said."""

_MEMORY_SHARE = 0.9
_BESIDE_BYTES = 1 << 30
"""For keys, values and workspace."""

_END = re.compile(rf"(?:^|[-._])({QUANTISATION.pattern})$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model of a repository: its files in the order of their parts, and what they take."""

    files: tuple[str, ...]
    nbytes: int
    quantisation: str | None

    @property
    def memory_bytes(self) -> int:
        """What running it takes."""
        held = self.nbytes * HELD.get(self.quantisation or "", 1.0)
        return int(held) + _BESIDE_BYTES


def gguf_models(files: Iterable[tuple[str, int]]) -> list[GgufModel]:
    """The language models among a repository's files (path, bytes), those whose parts are all
    there."""
    parts: dict[tuple[str, int], dict[int, tuple[str, int]]] = {}
    for name, nbytes in files:
        path = Path(name)
        if path.suffix.lower() != ".gguf" or is_projector(path) or path.name.startswith("imatrix"):
            continue
        stem, number, count = part_name(path) or (path.stem, 1, 1)
        parts.setdefault((str(path.parent / stem), count), {})[number] = (name, nbytes)
    models = []
    for (stem, count), found in sorted(parts.items()):
        if len(found) == count:
            named = _END.search(Path(stem).name)
            models.append(
                GgufModel(
                    tuple(found[number][0] for number in sorted(found)),
                    sum(nbytes for _, nbytes in found.values()),
                    named[1].upper() if named else None,
                )
            )
    return models


def best_that_fits(models: Iterable[GgufModel], name: str, available_bytes: int) -> GgufModel:
    """The best of a repository's models that fits the memory. Raises ModelError if none does, or
    none can be chosen by its name."""
    models = list(models)
    known = [model for model in models if model.quantisation in BEST_FIRST]
    if not known:
        if len(models) == 1:
            return models[0]
        raise ModelError(_nothing_to_choose(models, name))
    known.sort(key=lambda model: BEST_FIRST.index(model.quantisation or ""))
    most = int(available_bytes * _MEMORY_SHARE)
    for model in known:
        if model.memory_bytes <= most:
            return model
    least = min(known, key=lambda model: model.memory_bytes)
    raise ModelError(
        f"{name} does not fit: its smallest GGUF file, {least.quantisation}, takes "
        f"{readable(least.memory_bytes)} when it runs, and {readable(most)} of memory may be "
        f"taken; choose a smaller model, or name the file to try it: {name}:{least.quantisation}."
    )


def _nothing_to_choose(models: list[GgufModel], name: str) -> str:
    if not models:
        return (
            f"{name} has neither a config.json with weights nor GGUF files, so that it is no model."
        )
    named = sorted({model.quantisation for model in models if model.quantisation})
    if named:
        spelled = ", ".join(f"{name}:{quantisation}" for quantisation in named)
        return f"{name} holds GGUF files of which none is chosen unasked; name one: {spelled}."
    files = ", ".join(sorted(model.files[0] for model in models))
    return f"{name} holds several GGUF models; download one of them and name its path: {files}."
