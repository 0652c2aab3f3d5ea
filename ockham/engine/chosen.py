"""The techniques that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import Technique, find, make, name_of, techniques
from ockham.core.seams import ApproximateReuse, Drafter, Reuse
from ockham.core.speculative import AUTO, DRAFT_MODEL, METHODS, NONE, SpeculativeConfig
from ockham.model.checkpoint.draft_files import drafter_method, is_drafter
from ockham.model.hub import BUILT_IN, DRAFTERS


def make_drafters(config: SpeculativeConfig) -> list[Drafter]:
    """The drafters that a configuration names. Raises ConfigError for one that is not known, or a
    model that "auto" should draft with and that cannot be read."""
    names = [name for name in config.methods if name != NONE]
    for name in names:
        if name in DRAFTERS or name in BUILT_IN:
            raise ConfigError(
                f'{name} is what a drafter drafts with, and no method; write {{"model": "{name}"}}.'
            )
    if names == [AUTO]:
        found = [each for each in techniques("drafter") if each.name != NONE]
        names = [each.name for each in found if getattr(each.cls, "automatic", True)]
        if config.model is not None:
            names.append(_method_of(config.model))
    elif DRAFT_MODEL in names and config.model is not None:
        method = _method_of(config.model)
        if method != DRAFT_MODEL:
            raise ConfigError(
                f"{config.model} was made for the method {method!r}, and no model; leave the "
                "method out."
            )
    return [_find_drafter(name).cls(config) for name in names]


def _find_drafter(name: str) -> Technique:
    """Raises ConfigError with all the names that a method may have."""
    try:
        return find("drafter", name)
    except ConfigError:
        known = ", ".join([AUTO, *(each.name for each in techniques("drafter"))])
        others = ", ".join(f"{theirs} for {ours}" for theirs, ours in METHODS.items())
        raise ConfigError(
            f"there is no drafter called {name!r}; there is: {known}; and vLLM's names {others}."
        ) from None


def _method_of(model: str) -> str:
    """What drafts with a model, or with what was made for another."""
    directory = DRAFTERS.get(model, Path(os.path.expanduser(model)))
    if not is_drafter(directory):
        return DRAFT_MODEL
    try:
        return drafter_method(directory)
    except ModelError as error:
        raise ConfigError(str(error)) from None


def choose_reuses(config: EngineConfig) -> tuple[Reuse, dict[str, ApproximateReuse]]:
    """The exact reuse, and the approximate ones by name. Raises ConfigError for two exact ones."""
    exact, approximate = [], {}
    for given in config.reuse_techniques:
        technique, reuse = find("reuse", name_of(given)), make("reuse", given)
        if technique.exact:
            exact.append(reuse)
        else:
            approximate[technique.name] = reuse
    if len(exact) > 1:
        names = " and ".join(reuse.name for reuse in exact)
        raise ConfigError(f"an engine has one exact reuse, got {names}; leave one of them out.")
    return exact[0] if exact else make("reuse", "none"), approximate
