"""The techniques that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import Technique, find, make, name_of, read_options, techniques
from ockham.core.seams import ApproximateReuse, Drafter, Policy, Reuse
from ockham.core.speculative import AUTO, NONE, SpeculativeConfig, automatic
from ockham.model.checkpoint.draft_files import drafter_method, is_drafter
from ockham.model.draft_heads.assistant import METHOD, is_assistant
from ockham.model.hub import BUILT_IN, DRAFTERS


def make_drafters(config: SpeculativeConfig) -> list[Drafter]:
    """The drafters that a configuration names. Raises ConfigError for one that is not known, or a
    model that "auto" should draft with and that cannot be read."""
    given = [each for each in config.methods if each != NONE]
    for each in given:
        if each in DRAFTERS or each in BUILT_IN:
            raise ConfigError(
                f'{each} is what a drafter drafts with, and no method; write {{"model": "{each}"}}.'
            )
    if given == [AUTO]:
        given = [each.name for each in techniques("drafter") if automatic(each)]
        if config.model is not None:
            given.append(_method_of(config.model))
    found = [_find_drafter(name_of(each)) for each in given]
    for text, drafter in zip(given, found, strict=True):
        model = getattr(read_options(drafter, text, config.options_of(drafter)), "model", None)
        method = _made_for(model) if model is not None and _takes_any(drafter) else None
        if method is not None:
            raise ConfigError(
                f"{model} was made for the method {method!r}, and no model; leave the method out."
            )
    config.check(found)
    return [
        make("drafter", text, config.options_of(each))
        for text, each in zip(given, found, strict=True)
    ]


def _find_drafter(name: str) -> Technique:
    """Raises ConfigError with all the names that a method may have."""
    try:
        return find("drafter", name)
    except ConfigError:
        known = ", ".join([AUTO, *(each.name for each in techniques("drafter"))])
        raise ConfigError(f"there is no drafter called {name!r}; there is: {known}.") from None


def _method_of(model: str) -> str:
    """What drafts with a model, or with what was made for another."""
    made_for = _made_for(model)
    return made_for or next(each.name for each in techniques("drafter") if _takes_any(each))


def _takes_any(drafter: Technique) -> bool:
    """Whether it drafts with any model of the target's vocabulary."""
    return getattr(drafter.cls, "needs_model", False)


def _made_for(model: str) -> str | None:
    """The method that a directory's drafter was made for; None for a model. Raises ConfigError for
    a drafter that cannot be read."""
    directory = DRAFTERS.get(model, Path(os.path.expanduser(model)))
    try:
        if is_drafter(directory):
            return drafter_method(directory)
        return METHOD if is_assistant(directory) else None
    except ModelError as error:
        raise ConfigError(str(error)) from None


NO_REUSE, IN_TURN = "none", "fcfs"
"""The plain choices: everything is computed, in the order in which it came."""


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
    return exact[0] if exact else make("reuse", NO_REUSE), approximate


def plain_policy(config: EngineConfig, policy: Policy) -> Policy:
    """The order of a model's requests that share no prefixes: that of arrival, unless another was
    asked for. Looking for prefixes that they share takes time from each."""
    asked = config.scheduling_policy != EngineConfig().scheduling_policy
    plain: Policy = policy if asked else make("policy", IN_TURN)
    return plain
