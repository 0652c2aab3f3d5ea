"""Which model a command takes that was told of none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ockham.core.logs import say

REAL, TOY = "smollm2", "lab"
NAMED = "ockham.model_named"
"""Where a command's context says whether a model was named: by the argument, the flag, the
environment or the file of `--config`."""


def for_chats(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a command that talks with people: where no model was named, they get the small
    real model if it is on this machine, else the built-in toy, and which one is said on stderr."""
    if click.get_current_context().meta.get(NAMED, True):
        return dict(settings)
    model = REAL if _is_here(REAL) else TOY
    if model == REAL:
        said = f"taking {REAL}, a small real one; `ockham models` lists others."
    else:
        said = (
            f"taking {TOY}, a toy that cannot answer. `ockham pull {REAL}` gets a small real one "
            "(98 MB)."
        )
    say(f"No MODEL was named: {said}")
    return {**settings, "model": model}


def _is_here(name: str) -> bool:
    """Whether a model of the table can be had without the network."""
    from ockham.model.hub import cached_snapshot
    from ockham.model.known_models import named_repository, packaged_file

    repository = named_repository(name)
    if packaged_file(repository) is not None:
        return True
    cached = cached_snapshot(repository.name)
    return cached is not None and any(cached.rglob("*.gguf"))
