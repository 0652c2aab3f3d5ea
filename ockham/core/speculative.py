"""Speculative decoding: which drafters draft, how much at most, and what has been drafted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.registry import Technique, name_of, option_names, read_options, split, techniques

AUTO, NONE = "auto", "none"
MOST_TOKENS = 64


class SpeculativeConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What drafts, and how much.

    `method` is a drafter's name, several with commas between them, "auto" for all that need no
    model of their own and pay together, and what the option `model` names, or "none". Options may
    stand behind a name ("copying:2"). `num_speculative_tokens` bounds the tokens that are drafted
    after one; how many they are in a step is decided by what they are worth then, unless `adaptive`
    is false: then it is always as many as the drafter has. `options` are those of the drafters, by
    name; each goes to every drafter that has it.
    """

    method: str = AUTO
    num_speculative_tokens: int = 16
    adaptive: bool = True
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not 1 <= self.num_speculative_tokens <= MOST_TOKENS:
            raise ConfigError(
                f"num_speculative_tokens must lie in [1, {MOST_TOKENS}], got "
                f'{self.num_speculative_tokens}; to draft nothing, use the method "none".'
            )

    @property
    def methods(self) -> list[str]:
        """The drafters as they are given, each with the options behind its name, or "auto" or
        "none"."""
        return split(self.method)

    @property
    def model(self) -> str | None:
        """What the drafters that draft with a model draft with, if it is named for all."""
        model: str | None = self.options.get("model")
        return model

    def options_of(self, technique: Technique) -> dict[str, Any]:
        """Those of `options` that a drafter has."""
        known = option_names(technique.options)
        return {key: value for key, value in self.options.items() if key in known}

    def check(self, drafting: Iterable[Technique]) -> None:
        """Raise ConfigError for an option that none of these drafters has, or a value that one of
        them cannot have. An option at its default is no harm to others."""
        drafting = list(drafting)
        for technique in drafting:
            read_options(technique, technique.name, self.options_of(technique))
        for key, value in self.options.items():
            if any(key in option_names(technique.options) for technique in drafting):
                continue
            having = [t for t in techniques("drafter") if key in option_names(t.options)]
            if not having:
                raise ConfigError(f"speculative_config: {_unknown(key)}")
            if all(value == getattr(read_options(t, t.name), key) for t in having):
                continue
            raise ConfigError(
                f"{key} is a setting of the method {' or '.join(t.name for t in having)}, and the "
                f"method is {self.method!r}; leave one of them out."
            )


def _unknown(key: str) -> str:
    return f"Object contains unknown field `{key}`. It has the keys {', '.join(_keys())}."


def _keys() -> list[str]:
    """Every key that a setting may have."""
    own = [name for name in SpeculativeConfig.__struct_fields__ if name != "options"]
    options = [key for t in techniques("drafter") for key in option_names(t.options)]
    return list(dict.fromkeys([*own, *options]))


class DraftStats(msgspec.Struct, omit_defaults=True):
    """What has been drafted: steps of a sequence with a draft, the drafts' tokens, and those that
    were accepted, in all and by their depth in the draft."""

    drafts: int = 0
    tokens: int = 0
    accepted: int = 0
    accepted_at: list[int] = []
    seconds: float = 0.0
    """Of drafting, for so many steps of a sequence:"""
    planned: int = 0
    reading_s: float = 0.0
    """Of `seconds`, what a draft model took to read prompts."""
    bytes: int = 0
    """What is known of the running sequences, and what they share, about."""


Setting = str | dict[str, Any] | None


def parse(setting: Setting) -> SpeculativeConfig:
    """A method's name, a JSON object as text, or a mapping; None is "none". A mapping has the
    fields of `SpeculativeConfig`, and options of the drafters beside them.

    Raises ConfigError with what is wrong.
    """
    if setting is None:
        return SpeculativeConfig(method=NONE)
    values: Any = setting
    if isinstance(setting, str):
        if not setting.lstrip().startswith("{"):
            setting = json.dumps({"method": setting})
        try:
            values = json.loads(setting)
        except ValueError as error:
            raise ConfigError(f"speculative_config is no valid JSON ({error}).") from None
    try:
        config = msgspec.convert(_sorted(values), SpeculativeConfig)
    except msgspec.ValidationError as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"speculative_config: {reason}. It has the keys {', '.join(_keys())}."
        ) from None
    methods = config.methods
    if len(methods) > 1 and (AUTO in methods or NONE in methods):
        raise ConfigError(
            f"speculative_config: the method {config.method!r} has {AUTO!r} or {NONE!r} beside "
            "others; name it alone, or drafters only."
        )
    _check(config)
    return msgspec.structs.replace(config, method=",".join(methods))


def _sorted(values: Any) -> Any:
    """Keys that are not ours are options of drafters, where null is none."""
    if not isinstance(values, dict):
        return values
    own = {key for key in SpeculativeConfig.__struct_fields__ if key != "options"}
    options = {k: v for k, v in values.items() if k not in own and v is not None}
    return {**{k: v for k, v in values.items() if k in own}, "options": options}


def _check(config: SpeculativeConfig) -> None:
    """Refuse options that cannot be before an engine is made. Names of methods that nobody knows
    are told by who makes the drafters."""
    methods = config.methods
    if not config.options and not any(":" in given for given in methods):
        return
    known = {technique.name: technique for technique in techniques("drafter")}
    named = {name_of(given): given for given in methods}
    for name, given in named.items():
        if name in known:
            read_options(known[name], given)
    if AUTO in named:
        chosen = [t for t in known.values() if automatic(t) or (config.model and has_model(t))]
    else:
        chosen = [known[name] for name in named if name in known]
    config.check(chosen)


def automatic(technique: Technique) -> bool:
    """Whether "auto" drafts with it."""
    return technique.name != NONE and getattr(technique.cls, "automatic", True)


def has_model(technique: Technique) -> bool:
    """Whether it drafts with a model, or with something else that was trained."""
    return "model" in option_names(technique.options)
