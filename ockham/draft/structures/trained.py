"""What was trained for a drafter, read and checked against the model that it drafts for."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np

from ockham.core.arrays import Floats
from ockham.core.errors import ConfigError, ModelError
from ockham.core.seams import OwnModel
from ockham.model.checkpoint.draft_files import Parts, read_drafter
from ockham.model.hub import resolve_drafter

P = TypeVar("P", bound=Parts)


class TrainedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model` is the directory of what was trained, or the name of a built-in drafter."""

    model: str | None = None


def read_trained(name: str | None, parts: type[P], method: str, model: OwnModel) -> P:
    """The parts of the trained drafter `name`. Raises ConfigError if none is named, if it cannot
    be read, or was trained for another method or another model."""
    if name is None:
        raise ConfigError(
            f'the method "{method}" needs a "model": a directory that `ockham draft train --method '
            f'{method}` wrote for this model, such as {{"method": "{method}", "model": "DIR"}}.'
        )
    try:
        trained = read_drafter(resolve_drafter(name))
        trained.check_target(model.hidden_size, model.vocabulary, model.layers)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(trained.parts, parts):
        raise ConfigError(
            f"{name} was trained for the method {trained.method!r}, not for {method!r}."
        )
    return trained.parts


def silu(x: Floats) -> Floats:
    """x times its logistic function. Large negative values give -0, with no warning."""
    slope: Floats = np.exp(-np.maximum(x, -80.0), dtype=np.float32)
    y: Floats = np.divide(x, 1.0 + slope, dtype=np.float32)
    return y
