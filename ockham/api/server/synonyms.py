"""Fields that other servers have under another name, or in another form, where they mean what a
field here means.

They are translated before a request is checked, so that all that holds for a field holds for its
synonyms too, and a refusal names the field of this server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

Fields = dict[str, Any]


def translated(raw: Fields, fields: Collection[str]) -> Fields:
    """A request's object with the synonyms among its fields translated into `fields`, which its
    type declares. Raises `InvalidRequest` where two of them say different things."""
    if SYNONYMS.keys().isdisjoint(raw):
        return raw
    made = {name: value for name, value in raw.items() if name not in SYNONYMS or name in fields}
    for name, value in raw.items():
        if name not in SYNONYMS or name in fields or value is None:
            continue
        if name == "repeat_penalty" and raw.get("repeat_last_n") == 0:
            continue  # it is off
        meant = SYNONYMS[name](value)
        if meant is None or not meant.keys() <= set(fields):
            made[name] = value  # no synonym: it is judged as any other field is
            continue
        for field, each in meant.items():
            made[field] = _joined(made.get(field), each, name, field)
    return made


def _joined(given: Any, meant: Any, name: str, field: str) -> Any:
    if given is None:
        return meant
    if isinstance(given, dict) and isinstance(meant, dict):
        return {**given, **{k: _joined(given.get(k), v, name, field) for k, v in meant.items()}}
    if given != meant:
        raise InvalidRequest(
            f"{name} means the same as {field} here, and they differ: {shown(meant)} and "
            f"{shown(given)}; send one of them.",
            name,
        )
    return given


def _as(field: str, key: str | None = None) -> Callable[[Any], Fields]:
    """Another name of a field, or of a key of it."""
    return lambda value: {field: value if key is None else {key: value}}


def _length(value: Any) -> Fields:
    """llama.cpp's and Ollama's -1 and -2: until the model stops or the context is full."""
    return {} if value in (-1, -2) else {"max_tokens": value}


def _grammar(value: Any) -> Fields:
    """llama.cpp's default is an empty text."""
    return {} if value == "" else {"structured_outputs": {"grammar": value}}


def _samples(value: Any) -> Fields | None:
    """Hugging Face's `do_sample`."""
    if value is True:
        return {}
    return {"temperature": 0} if value is False else None


def _think(value: Any) -> Fields:
    """Ollama's `think`: whether to, or how long."""
    if isinstance(value, str):
        return {"reasoning_effort": value}
    return {"chat_template_kwargs": {"enable_thinking": value}}


def _thinking(value: Any) -> Fields | None:
    """What DeepSeek, GLM and Kimi take in OpenAI's API: {"type": "enabled" | "disabled"}."""
    kinds = {"enabled": True, "disabled": False}
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in kinds or not value.keys() <= {"type"}:
        return None
    return {"chat_template_kwargs": {"enable_thinking": kinds[kind]}}


def _reasoning(value: Any) -> Fields | None:
    """OpenRouter's `reasoning`."""
    if not isinstance(value, dict) or not value.keys() <= {"effort", "enabled", "exclude"}:
        return None
    made: Fields = {}
    if value.get("effort") is not None:
        made["reasoning_effort"] = value["effort"]
    if value.get("enabled") is not None:
        made["chat_template_kwargs"] = {"enable_thinking": value["enabled"]}
    if value.get("exclude") is not None:
        made["include_reasoning"] = not value["exclude"]
    return made


SYNONYMS: dict[str, Callable[[Any], Fields | None]] = {
    # llama.cpp and Ollama
    "repeat_penalty": _as("repetition_penalty"),
    "n_predict": _length,
    "num_predict": _length,
    "json_schema": _as("structured_outputs", "json"),
    "grammar": _grammar,
    "think": _think,
    # vLLM's older names, and SGLang's
    "guided_json": _as("structured_outputs", "json"),
    "guided_regex": _as("structured_outputs", "regex"),
    "guided_choice": _as("structured_outputs", "choice"),
    "guided_grammar": _as("structured_outputs", "grammar"),
    "guided_whitespace_pattern": _as("structured_outputs", "whitespace_pattern"),
    "regex": _as("structured_outputs", "regex"),
    "ebnf": _as("structured_outputs", "grammar"),
    # Hugging Face
    "max_new_tokens": _length,
    "do_sample": _samples,
    # Servers of reasoning models
    "enable_thinking": _as("chat_template_kwargs", "enable_thinking"),
    "thinking": _thinking,
    "reasoning": _reasoning,
}
"""Field of another server -> what a value of it means in fields of this one; None: it is no
synonym at this value."""
