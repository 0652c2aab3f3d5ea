"""The techniques that a configuration names."""

from __future__ import annotations

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import find, make, techniques
from ockham.core.seams import ApproximateReuse, Drafter, Reuse
from ockham.core.speculative import AUTO, NONE, SpeculativeConfig


def make_drafters(config: SpeculativeConfig) -> list[Drafter]:
    """The drafters that a configuration names."""
    names = [config.method]
    if config.method == AUTO:
        found = [each for each in techniques("drafter") if each.name != NONE]
        names = [each.name for each in found if getattr(each.cls, "automatic", True)]
    elif config.method == NONE:
        names = []
    return [find("drafter", name).cls(config) for name in names]


def choose_reuses(config: EngineConfig) -> tuple[Reuse, dict[str, ApproximateReuse]]:
    """The exact reuse, and the approximate ones by name. Raises ConfigError for two exact ones."""
    exact, approximate = [], {}
    for given in config.reuse_techniques:
        technique, reuse = make("reuse", given)
        if technique.exact:
            exact.append(reuse)
        else:
            approximate[technique.name] = reuse
    if len(exact) > 1:
        names = " and ".join(reuse.name for reuse in exact)
        raise ConfigError(f"an engine has one exact reuse, got {names}; leave one of them out.")
    return exact[0] if exact else make("reuse", "none")[1], approximate
