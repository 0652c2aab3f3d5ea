"""How tokens are drafted: the settings under vLLM's keys."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ockham.core.errors import ConfigError

AUTO, NONE = "auto", "none"
DRAFT_MODEL = "draft_model"
WITH_MODEL = (DRAFT_MODEL, "rapid", "medusa", "prompt_tokens", "early_exit", "corpus")
"""Methods that have a model, or something else that was trained."""
METHODS = {"ngram": "copying", "suffix": "trie", "off": NONE}
"""vLLM's names of methods that have another one here, and the word for none of them."""
MOST_TOKENS = 64
MOST_BRANCHES = 8
MOST_LAYERS = 16
KEEPING = ("trie",)
"""Methods that can keep what they have learned in a file."""
LEAST_LEARNED_BYTES = 1 << 20


_OF = {
    "prompt_lookup_min": ("copying",),
    "branches": (DRAFT_MODEL, "rapid"),
    "rejection_threshold": (DRAFT_MODEL, "rapid"),
    "layer_parallel": (DRAFT_MODEL,),
    "draft_context": ("rapid",),
}
"""Settings that only some methods have."""


class SpeculativeConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What drafts, and how much.

    `method` is a drafter's name, several with commas between them, "auto" for all that need no
    model of their own and pay together, and what `model` names, or "none".
    `num_speculative_tokens` bounds the tokens that are drafted after one; how many they are in a
    step is decided by what they are worth then, unless `adaptive` is false: then it is always as
    many as the drafter has. `prompt_lookup_min` is the shortest match that is copied from. `model`
    is the draft model of the method "draft_model", which drafts trees with up to `branches` tokens
    below each (1: chains), and none for which the chance that it or one before it is rejected
    exceeds `rejection_threshold`, `layer_parallel` layers at a time from the same input; or of
    "rapid", which drafts in the same way from `draft_context` tokens of a text, with the model
    itself where none is named; or the directory of what was made for the method "medusa",
    "prompt_tokens", "corpus" or "early_exit"; of the last, `layers` instead says after how many
    layers the model is left. `learned_bytes` bounds the memory of each
    drafter that learns from one request for another, of all tenants together; in `learned_file` the
    drafter "trie" keeps what it has learned, read when an engine starts, written when it ends.
    """

    method: str = AUTO
    num_speculative_tokens: int = 16
    prompt_lookup_min: int = 1
    adaptive: bool = True
    model: str | None = None
    layers: int | None = None
    branches: int = 4
    rejection_threshold: float = 1.0
    layer_parallel: int = 1
    draft_context: int = 512
    learned_bytes: int = 64 << 20
    learned_file: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_speculative_tokens <= MOST_TOKENS:
            raise ConfigError(
                f"num_speculative_tokens must lie in [1, {MOST_TOKENS}], got "
                f'{self.num_speculative_tokens}; to draft nothing, use the method "none".'
            )
        if self.prompt_lookup_min < 1:
            raise ConfigError(
                f"prompt_lookup_min must be at least 1, got {self.prompt_lookup_min}."
            )
        if self.layers is not None and ("early_exit" not in self.methods or self.layers < 1):
            raise ConfigError(
                "layers is of the method early_exit, and at least 1: after so many layers the "
                f"model is left; got layers = {self.layers} with the method {self.method!r}."
            )
        if not 1 <= self.branches <= MOST_BRANCHES:
            raise ConfigError(
                f"branches must lie in [1, {MOST_BRANCHES}], got {self.branches}; 1 drafts chains."
            )
        if not 1 <= self.layer_parallel <= MOST_LAYERS:
            raise ConfigError(
                f"layer_parallel must lie in [1, {MOST_LAYERS}], got {self.layer_parallel}; 1 runs "
                "the draft model as it is."
            )
        if not 0.0 < self.rejection_threshold <= 1.0:
            raise ConfigError(
                f"rejection_threshold must lie in (0, 1], got {self.rejection_threshold}; 1 lets "
                "drafts end where they no longer pay."
            )
        if self.learned_bytes < LEAST_LEARNED_BYTES:
            raise ConfigError(
                f"learned_bytes must be at least {LEAST_LEARNED_BYTES}, got {self.learned_bytes}."
            )
        if self.learned_file is not None and not set(self.methods) & set(KEEPING):
            raise ConfigError(
                f"learned_file is kept by the method {' or '.join(KEEPING)}, and the method is "
                f"{self.method!r}; leave one of them out."
            )
        self._check_keys()

    def _check_keys(self) -> None:
        """Raise ConfigError for a setting that no chosen method has."""
        chosen = set(self.methods)
        if AUTO in chosen:
            chosen |= {"copying", *((DRAFT_MODEL,) if self.model is not None else ())}
        for key, methods in _OF.items():
            default = next(f.default for f in msgspec.structs.fields(self) if f.name == key)
            if getattr(self, key) != default and not chosen & set(methods):
                raise ConfigError(
                    f"{key} is a setting of the method {' or '.join(methods)}, and the method is "
                    f"{self.method!r}; leave one of them out."
                )

    @property
    def methods(self) -> list[str]:
        """The drafters' names, or "auto" or "none"."""
        return [METHODS.get(name.strip(), name.strip()) for name in self.method.split(",")]


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
    """A method's name, a JSON object as text, or a mapping; None is "none".

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
        config = msgspec.convert(values, SpeculativeConfig)
    except msgspec.ValidationError as error:
        known = ", ".join(SpeculativeConfig.__struct_fields__)
        reason = str(error).rstrip(".")
        raise ConfigError(f"speculative_config: {reason}. It has the keys {known}.") from None
    methods = config.methods
    if len(methods) > 1 and (AUTO in methods or NONE in methods):
        raise ConfigError(
            f"speculative_config: the method {config.method!r} has {AUTO!r} or {NONE!r} beside "
            "others; name it alone, or drafters only."
        )
    if config.model is not None and not {AUTO, *WITH_MODEL} & set(methods):
        raise ConfigError(
            f"speculative_config: the method {config.method!r} has no model; leave out "
            f'"model", or choose one of the methods {AUTO}, {", ".join(WITH_MODEL)}.'
        )
    return msgspec.structs.replace(config, method=",".join(methods))
