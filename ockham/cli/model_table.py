"""The models of `ockham serve A B --embedding C`, or of a table in the file of `--config`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ockham.api.adapters import ENABLED, OPTIONS, read_modules
from ockham.cli.adapter_options import with_adapter_setting
from ockham.cli.command import did_you_mean
from ockham.cli.default_model import NAMED
from ockham.cli.options import engine_config, option
from ockham.cli.value_types import Duration, Integer, ModelName, TextOrMapping
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.model.hub import served_names

if TYPE_CHECKING:
    from ockham.api.server.specs import ModelSpec, Table

F = TypeVar("F", bound=Callable[..., Any])

OWN = ("model", "aliases", "keep_alive", "lora_modules", "preload")
"""Keys of a model in the table that are no settings of an engine."""
ONLY_SEVERAL = ("keep_alive", "models_max", "models_memory_bytes")
"""Flags that say nothing to a server of one model."""


def model_options(function: F) -> F:
    """Adds the flags of several models to a command; `read_table` takes them in."""
    for decorate in reversed(
        (
            option(
                "--embedding",
                type=ModelName(),
                multiple=True,
                help="A further model, which is there for embeddings; may be given more than once.",
            ),
            option(
                "--models",
                type=TextOrMapping(),
                help="Further models, as a table: in the file of --config name: {model: ..., "
                "aliases: [...], keep-alive: ..., and any setting of the engine}, here as JSON.",
            ),
            option(
                "--keep-alive",
                type=Duration(),
                default="5m",
                show_default=True,
                help="How long one of several models stays loaded when nobody asks it anything; "
                "below 0 until its memory is needed.",
            ),
            option(
                "--models-max",
                type=Integer(1),
                default=None,
                help="Most models that are loaded at once. [default: all that fit]",
            ),
            option(
                "--models-memory-bytes",
                type=Integer(1),
                default=None,
                help="Memory that several models may take together. [default: "
                "--gpu-memory-utilization of what is free at the start]",
            ),
        )
    ):
        function = decorate(function)
    return function


def read_table(
    engine: dict[str, Any],
    *,
    more_models: Sequence[str],
    embedding: Sequence[str],
    models: Any,
    keep_alive: float,
    models_max: int | None,
    models_memory_bytes: int | None,
    served_model_name: Sequence[str],
    lora_modules: Sequence[str],
) -> Table | None:
    """The models that a server is to have; None for one that has a single model, which was named
    in no table. `engine` are the settings of the command line, which hold for every model that has
    no other in the table. Raises ConfigError."""
    context = click.get_current_context()
    source = context.get_parameter_source
    if not more_models and not embedding and not models:
        for name in ONLY_SEVERAL:
            if source(name) is not click.core.ParameterSource.DEFAULT:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is for servers of several models; the only model "
                    "of a server stays as long as it runs. Name it in a table (--models) to have "
                    "it let go."
                )
        return None
    from ockham.api.server.house import EMBED
    from ockham.api.server.specs import ModelSpec, Table, own_stores
    from ockham.model.machine_memory import available_bytes

    if served_model_name or lora_modules:
        raise ConfigError(
            "--served-model-name and --lora-modules do not say which of several models they are "
            "for; give aliases and lora-modules in the table (models: in the file of --config)."
        )
    named = [engine["model"]] if context.meta.get(NAMED, True) else []
    each_of = [engine | {"model": model} for model in (*named, *more_models)]
    embeds = _of_embeddings(engine)
    each_of += [embeds | {"model": model, "task": EMBED} for model in embedding]
    specs = [
        ModelSpec(served_names(each["model"]), engine_config(**each), keep_alive)
        for each in each_of
    ]
    free = available_bytes()
    own: list[ModelSpec] = []
    for name, settings in _entries(models).items():
        spec, has_store = _spec(name, settings, engine, keep_alive, free)
        (own if has_store else specs).append(spec)
    share = int(engine["gpu_memory_utilization"] * free)
    return Table((*own_stores(specs), *own), models_max, models_memory_bytes or max(1, share))


def _of_embeddings(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the command line that hold for a model of embeddings as well: not those of
    text that is generated, which an encoder refuses, nor the length of a context."""
    from ockham.model.tasks import IN_PARTS

    plain = EngineConfig()
    return {**engine, **{name: getattr(plain, name) for name in (*IN_PARTS, "max_model_len")}}


def _entries(given: Any) -> dict[str, dict[str, Any]]:
    """The table's models by name. Raises ConfigError."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"--models is no JSON ({error}).") from error
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError("models must give each model's name its settings, or nothing.")
    found: dict[str, dict[str, Any]] = {}
    for name, settings in given.items():
        if isinstance(settings, str):
            settings = {"model": settings}
        if not isinstance(settings, (Mapping, type(None))) or not str(name).strip():
            raise ConfigError(
                f"models: {name!r} must have settings, the name of a checkpoint, or nothing."
            )
        found[str(name)] = {
            str(key).replace("-", "_"): value for key, value in (settings or {}).items()
        }
    return found


def _spec(
    name: str, given: dict[str, Any], engine: Mapping[str, Any], keep_alive: float, free: int
) -> tuple[ModelSpec, bool]:
    """A model of the table, and whether it has a KV store of its own. `free` is the machine's free
    memory, of which a share may be set. Raises ConfigError."""
    from ockham.api.server.house import EMBED
    from ockham.api.server.specs import ModelSpec

    context = click.get_current_context()
    settings = {key: _value(name, key, given[key]) for key in given if key not in OWN}
    if "gpu_memory_utilization" in settings and "memory_bytes" not in settings:
        settings["memory_bytes"] = max(1, int(settings["gpu_memory_utilization"] * free))
    if any(key in settings for key in (ENABLED, *OPTIONS)):
        settings = with_adapter_setting({**dict.fromkeys((ENABLED, *OPTIONS)), **settings})
    stay = Duration().convert(given.get("keep_alive", keep_alive), None, context)
    try:
        shared = _of_embeddings(engine) if settings.get("task") == EMBED else engine
        config = engine_config(**{**shared, **settings, "model": str(given.get("model", name))})
        spec = ModelSpec(
            names=(name, *_texts(given.get("aliases"))),
            config=config,
            stay_s=stay,
            adapters=read_modules(_modules(given.get("lora_modules"))),
            preload=bool(given.get("preload", False)),
        )
    except ConfigError as error:
        raise ConfigError(f"models: {name}: {error}") from error
    return spec, "kv_store" in settings


def _value(model: str, key: str, value: Any) -> Any:
    """A setting of an engine, as its flag takes it. Raises ConfigError."""
    context = click.get_current_context()
    known = {*EngineConfig.__struct_fields__, ENABLED, *OPTIONS} - {"model"}
    flags = {
        other.name: other
        for other in context.command.params
        if isinstance(other, click.Option) and other.name in known
    }
    if key not in flags:
        names = sorted(name.replace("_", "-") for name in (*flags, *OWN) if name)
        raise ConfigError(
            f"models: {model} sets {key.replace('_', '-')!r}, which is no setting of a model."
            f"{did_you_mean(key.replace('_', '-'), names)}"
        )
    if value is None:
        return None
    return flags[key].type_cast_value(context, value)


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else [str(each) for each in given]


def _modules(given: Any) -> list[str]:
    """Adapters as the flag has them: name=path, or JSON."""
    if isinstance(given, Mapping):
        return [json.dumps({"name": str(name), "path": str(path)}) for name, path in given.items()]
    given = [given] if isinstance(given, str) else given or []
    return [each if isinstance(each, str) else json.dumps(each) for each in given]
