"""Adapters by vLLM's names: what an engine must be told to serve them, and what requests say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ockham.core.asks import AdapterAsk, Ask
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.registry import name_of

TECHNIQUE = "lora"
ENABLED = "enable_lora"
OPTIONS = ("max_loras", "max_cpu_loras", "max_lora_rank")
"""vLLM's settings, which are options of the technique of this name."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """The adapter that a request wants, under vLLM's names: its files lie in the directory
    `lora_path` of the engine's machine. `lora_int_id` is vLLM's and tells nothing here."""

    lora_name: str
    lora_int_id: int = 1
    lora_path: str = ""


def own_adapter_setting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an engine with `adapter` in place of vLLM's names. Raises ConfigError."""
    own = {name: value for name, value in settings.items() if name not in (ENABLED, *OPTIONS)}
    options = {name: settings[name] for name in OPTIONS if settings.get(name) is not None}
    if not settings.get(ENABLED):
        if options:
            raise ConfigError(f"{', '.join(options)} say nothing without {ENABLED}; set it too.")
        return own
    if own.get("adapter") is not None:
        raise ConfigError(
            f"{ENABLED} and adapter={own['adapter']!r} say the same; give one of them."
        )
    named = ",".join(f"{name}={value}" for name, value in options.items())
    own["adapter"] = f"{TECHNIQUE}:{named}" if named else TECHNIQUE
    return own


def adapter_asks(setting: str | None, name: str, path: str) -> dict[str, Ask]:
    """What a request for an adapter asks of an engine with this setting, by key. Raises
    InvalidRequest."""
    if setting is None:
        raise InvalidRequest(
            f"the adapter {shown(name)} is asked for, and this engine takes none; start it with "
            f"{ENABLED}.",
            "model",
        )
    return {f"adapter/{name_of(setting)}": AdapterAsk(name=name, path=path)}


def asks_of(setting: str | None, wanted: LoRARequest | None) -> dict[str, Ask]:
    """What `wanted` asks of an engine with this setting. Raises InvalidRequest."""
    if wanted is None:
        return {}
    if not isinstance(wanted, LoRARequest):
        raise InvalidRequest(
            f"lora_request must be a LoRARequest, got {shown(wanted)}.", "lora_request"
        )
    return adapter_asks(setting, wanted.lora_name, os.fspath(wanted.lora_path))


def asks_of_each(
    setting: str | None, wanted: LoRARequest | Iterable[LoRARequest | None] | None, prompts: int
) -> list[dict[str, Ask]]:
    """The same for each of so many prompts, all of which one LoRARequest is for."""
    if wanted is None or isinstance(wanted, LoRARequest):
        return [asks_of(setting, wanted)] * prompts
    if not isinstance(wanted, (list, tuple)) or len(wanted) != prompts:
        raise InvalidRequest(
            f"lora_request must be a LoRARequest, or a list of one for each of {prompts} prompts, "
            f"got {shown(wanted)}.",
            "lora_request",
        )
    return [asks_of(setting, each) for each in wanted]


def read_modules(given: Iterable[str]) -> dict[str, str]:
    """The paths of the adapters that are served, by name: each is given as name=path, or as vLLM's
    JSON, {"name": ..., "path": ...}, alone or in a list. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in given:
        for name, path in _modules(text):
            if name in found:
                raise ConfigError(f"two adapters are called {name!r}; give each its own name.")
            found[name] = path
    return found


def _modules(text: str) -> list[tuple[str, str]]:
    if not text.lstrip().startswith(("{", "[")):
        name, equals, path = text.partition("=")
        if not equals or not name.strip() or not path.strip():
            raise ConfigError(f"an adapter is given as name=path, got {text!r}.")
        return [(name.strip(), path.strip())]
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the adapters {text!r} are no JSON ({error}).") from error
    entries = parsed if isinstance(parsed, list) else [parsed]
    for entry in entries:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) and entry[key] for key in ("name", "path")
        ):
            raise ConfigError(
                f'an adapter is given as {{"name": ..., "path": ...}}, got {json.dumps(entry)}.'
            )
    return [(entry["name"], entry["path"]) for entry in entries]
