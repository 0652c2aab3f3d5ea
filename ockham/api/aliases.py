"""vLLM's names of techniques that have another one here. Nothing below this package knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ockham.core.registry import split

ALIASES: dict[str, dict[str, str]] = {
    "speculative_config": {
        "ngram": "copying",
        "suffix": "trie",
        "off": "none",
        **{f"{model}_mtp": "mtp" for model in ("deepseek", "glm4_moe", "qwen3_next", "qwen3_5")},
    },
    "scheduling_policy": {"priority": "fcfs"},
}
"""Setting -> vLLM's name -> ours. Every policy here minds priorities, as vLLM's `priority` does."""


def own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an engine, with our names of techniques in place of vLLM's."""
    return {
        name: own_name(name, value) if name in ALIASES else value
        for name, value in settings.items()
    }


def own_name(setting: str, value: Any) -> Any:
    """One setting: names with commas between them, each with its options behind it, or a mapping,
    or JSON as text, that has them as `method`. What is none of these is left for others to
    refuse."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, Mapping):
        return {key: _names(setting, v) if key == "method" else v for key, v in value.items()}
    return _names(setting, value)


def _names(setting: str, given: Any) -> Any:
    if not isinstance(given, str):
        return given
    own = []
    for each in split(given):
        name, colon, options = each.partition(":")
        own.append(ALIASES[setting].get(name.strip(), name.strip()) + colon + options)
    return ",".join(own)
