"""What a server is told of each of several models."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ockham.api.server.house import GENERATE
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError

_ALONG = {"embed": ("token_embed",), "classify": ("score",), "score": ("classify",)}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is loaded when it is asked for.

    The first of `names` is the one in answers. `stay_s`: for how many seconds it stays when nobody
    asks it anything, infinite for always. `adapters` are the directories of the adapters that may
    be named in its place. `preload`: it is loaded when the server starts.
    """

    names: tuple[str, ...]
    config: EngineConfig
    stay_s: float = 300.0
    adapters: dict[str, str] = field(default_factory=dict)
    preload: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.stay_s):
            raise ConfigError(f"the keep-alive of {self.name} is not a number of seconds.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What requests may ask for, as far as the settings say: nothing where only the checkpoint
        does, and with what goes along with a task where that hangs on the checkpoint."""
        task = self.config.task
        return () if task == "auto" else (task, *_ALONG.get(task, ()))

    @property
    def may_generate(self) -> bool:
        """Whether it may be there to generate text: only a checkpoint says what "auto" is."""
        return self.config.task in ("auto", GENERATE)

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Table:
    """The models of a server. At most `most` of them are in memory at once, None for all, and they
    take at most `memory_bytes` together."""

    specs: tuple[ModelSpec, ...]
    most: int | None
    memory_bytes: int

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be served together."""
        if not self.specs:
            raise ConfigError("the table of models is empty; name a model.")
        if self.most is not None and self.most < 1:
            raise ConfigError(f"models_max must be at least 1, got {self.most}.")
        if self.memory_bytes < 1:
            raise ConfigError(f"models_memory_bytes must be positive, got {self.memory_bytes}.")
        _check_unique(
            [name for spec in self.specs for name in (*spec.names, *spec.adapters)],
            "two models, or a model and an adapter, are called {}; give each its own name.",
        )
        stores = [spec.config.kv_store for spec in self.specs if spec.config.kv_store is not None]
        _check_unique(
            [str(Path(each).expanduser().absolute()) for each in stores],
            "two models have the kv_store {}; one engine at a time has a directory.",
        )


def own_stores(specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Models that were given one `kv_store` together, each with a directory of its own in it, and
    an equal share of its bytes."""
    sharing = [spec for spec in specs if spec.config.kv_store is not None]
    return tuple(_with_own_store(spec, len(sharing)) if spec in sharing else spec for spec in specs)


def _with_own_store(spec: ModelSpec, shares: int) -> ModelSpec:
    config = spec.config
    assert config.kv_store is not None, "it shares one"
    directory = Path(config.kv_store) / store_name(spec.name)
    own = msgspec.structs.replace(
        config, kv_store=str(directory), kv_store_bytes=max(1, config.kv_store_bytes // shares)
    )
    return replace(spec, config=own)


def store_name(name: str) -> str:
    """A directory's name for a model's name, which may be a path. Two names never give the same."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    if plain == name:
        return plain
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{plain}-{digest}"


def _check_unique(values: Sequence[str], message: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(message.format(repr(value)))
