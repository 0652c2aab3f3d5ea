"""Transforms applied to a checkpoint, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError
from ockham.core.registry import make
from ockham.core.seams import Transform
from ockham.model.calibration import CalibrationText
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.program.compile import compile_program
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.reading import plain_packer
from ockham.model.rewriting.writing import CARD, plain_config


@dataclass(frozen=True, slots=True)
class MadeTransform:
    """A transform that a search made, and what its card calls it."""

    name: str
    transform: Transform


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Transforms, in the order in which they are applied: by name with their options, or made.
    `dtype` is that of a plain checkpoint, by default the original's. With `widen`, what a quantised
    checkpoint holds is taken for its weights; without it, such a one is refused."""

    transforms: tuple[str | MadeTransform, ...]
    dtype: str | None = None
    widen: bool = False


def rewrite(
    opened: OpenedModel,
    path: Path,
    rewriting: Rewriting,
    text: Callable[[], CalibrationText] | None,
    progress: Callable[[str], None],
) -> RewrittenModel:
    """The model after all transforms, with their card in its config. `text` reads the calibration
    text, if there is one, and is asked only where a transform needs it. Raises ConfigError for a
    model that is quantised, unless it is to be widened, and as transforms do."""
    if not rewriting.widen:
        measured = opened.source.measure(plain_packer())
        compile_program(opened.description, measured, opened.description.max_position_embeddings)
        if measured.notes():
            raise ConfigError(
                f"{path} is quantised already, and transforms begin with unquantised weights: name "
                "the original, or add --widen to take its rounded values for the model."
            )
    transforms = [
        MadeTransform(given, make("transform", given)) if isinstance(given, str) else given
        for given in rewriting.transforms
    ]
    read = None if text is None else cache(text)
    model = RewrittenModel(opened, progress, read)
    cards: list[dict[str, Any]] = []
    for made in transforms:
        cards.append({"transform": made.name, **made.transform.apply(model)})
        progress(f"transformed by {made.name}")
    if read is not None and read.cache_info().currsize:
        cards[-1]["calibration"] = read().record()
    model.config[CARD] = [*model.config.get(CARD, ()), *cards]
    return model


def was_read(model: RewrittenModel) -> bool:
    """Whether a transform of `rewrite` has read the calibration text."""
    return "calibration" in model.config[CARD][-1]


def reopened(opened: OpenedModel, model: RewrittenModel) -> OpenedModel:
    """The rewritten model as one that was opened, in fp32, so that weights are rounded once."""
    return dataclasses.replace(
        opened,
        config=plain_config(model, "float32"),
        description=model.description,
        source=model.source("float32"),
    )
