"""A JSON object on its way to a request: what is left out, what does nothing, what is too large.

`null` means the same as leaving a field out, whatever the field. A field that other servers know
and this one has no use for is accepted at its neutral value, which asks for nothing (`NEUTRAL`).
Any other field that a request does not declare is refused, or passed over where the operator said
so (`--unknown-fields`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal, get_args

from msgspec import inspect

from ockham.core.errors import InvalidRequest
from ockham.core.numbers import (
    HIGHEST_INTEGER,
    LOWEST_INTEGER,
    MAX_TOKEN_ID,
    check_json,
    shown,
)
from ockham.core.sampling_params import MAX_LIST_ENTRIES

UnknownFields = Literal["refuse", "warn", "ignore"]
UNKNOWN_FIELDS: tuple[UnknownFields, ...] = get_args(UnknownFields)

ANY = object()
"""A neutral value that stands for all of them: the field can do nothing here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "store": (False, True),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM
    "echo": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "continue_final_message": (False,),
    "include_reasoning": (True,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "return_tokens_as_token_ids": (False,),
    "detokenize": (True,),
    # llama.cpp and what is built on it
    "cache_prompt": (True,),
    "id_slot": (-1,),
    "repeat_last_n": (ANY,),  # see `synonyms`
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "tfs": (1.0,),
    "typical": (1.0,),
    "top_a": (0.0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "mirostat_tau": (ANY,),  # these say how, where mirostat says whether
    "mirostat_eta": (ANY,),
    "dynatemp_range": (0.0,),
    "dynatemp_exponent": (1.0,),
    "xtc_probability": (0.0,),
    "xtc_threshold": (ANY,),
    "dry_multiplier": (0.0,),
    "dry_base": (ANY,),
    "dry_allowed_length": (ANY,),
    "dry_penalty_last_n": (ANY,),
    "dry_sequence_breakers": (ANY,),
    "smoothing_factor": (0.0,),
    "smoothing_curve": (ANY,),
    "n_probs": (0,),
    "n_keep": (0,),
    "n_indent": (0,),
    "min_keep": (0,),
    "penalize_nl": (False, True),
    "post_sampling_probs": (False,),
    "lora": ([],),
    "guided_decoding_backend": (ANY,),
    # Ollama and the Hugging Face hub
    "options": ({},),
    "think": (False,),
    "raw": (False,),
    "keep_alive": (ANY,),  # the model stays, and the context is the server's own
    "num_ctx": (ANY,),
    "num_batch": (ANY,),
    "num_thread": (ANY,),
    "num_gpu": (0, -1),
    "use_mmap": (ANY,),
    "use_mlock": (ANY,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "watermark": (False,),
    "return_full_text": (False,),
}
"""Field of another server's requests -> the values at which it asks for nothing."""

NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": (),
    "refusal": ("",),
    "annotations": ([],),
    "images": ([],),
    "prefix": (False,),
    "partial": (False,),
    "provider_specific_fields": ({},),
    "reasoning_details": (ANY,),
    "thinking_blocks": (ANY,),
}
"""The same for a message of a chat."""

_INTEGER = re.compile(r"[0-9]{1,10}")
_SHOWN_NAME = 60


class Sieve:
    """Makes of a JSON object what the type of a request can be made of.

    `passed_over` are the fields that were unknown and are ignored, for whoever must be told.
    """

    def __init__(self, unknown: UnknownFields = "refuse") -> None:
        self._unknown = unknown
        self.passed_over: list[str] = []

    def take(self, raw: Any, kind: type) -> Any:
        """`raw` without nulls, neutral and ignored fields. Raises `InvalidRequest` that names the
        field for what is unknown, too large or too deep; types are left to msgspec."""
        return self._take(raw, _type_of(kind), "")

    def _take(self, value: Any, kind: inspect.Type, where: str) -> Any:
        for each in getattr(kind, "types", (kind,)):
            if isinstance(each, inspect.StructType) and isinstance(value, dict):
                return self._object(value, each, where)
            if isinstance(each, inspect.ListType) and isinstance(value, list):
                return self._list(value, each, where)
            if isinstance(each, inspect.DictType) and isinstance(value, dict):
                return self._dict(value, each, where)
            if isinstance(each, (inspect.IntType, inspect.FloatType)) and _is_number(value):
                return _number(value, isinstance(each, inspect.IntType), where)
            if isinstance(each, inspect.AnyType):
                check_json(value, where)
        return value

    def _object(self, raw: dict[str, Any], kind: inspect.StructType, where: str) -> dict[str, Any]:
        fields = _fields_of(kind.cls)
        kept = {}
        for name, value in raw.items():
            if value is None:
                continue
            path = f"{where}.{name}" if where else name
            if name in fields:
                kept[name] = self._take(value, fields[name], path)
            else:
                self._pass_over(name, value, kind.cls, path)
        return kept

    def _pass_over(self, name: str, value: Any, kind: type, path: str) -> None:
        """Leave out a field that no request declares. Raises `InvalidRequest` if it must not be."""
        table: dict[str, tuple[Any, ...]] = getattr(kind, "neutral", {})
        neutral = table.get(name)
        if neutral is not None and any(_same(value, each) for each in neutral):
            return
        path = path if len(path) <= _SHOWN_NAME else f"{path[:_SHOWN_NAME]}..."
        if self._unknown != "refuse":
            self.passed_over.append(path)
            return
        if neutral is None:
            raise InvalidRequest(
                f"{path} is not a field that this server knows or supports; leave it out.", path
            )
        accepted = " or ".join(map(shown, neutral))
        raise InvalidRequest(
            f"{path}={shown(value)} is not supported; leave it out"
            + (f", or send {accepted}." if accepted else "."),
            path,
        )

    def _list(self, values: list[Any], kind: inspect.ListType, where: str) -> list[Any]:
        """Entries one by one, unless there are only integers, whose size is looked at where they
        are used, or only texts, or so many that their number is refused."""
        plain = set(map(type, values)) in ({int}, {str})
        if plain or not values or _too_many(values, kind):
            return values
        return [
            self._take(value, kind.item_type, f"{where}[{index}]")
            for index, value in enumerate(values)
        ]

    def _dict(self, value: dict[str, Any], kind: inspect.DictType, where: str) -> dict[Any, Any]:
        if not isinstance(kind.key_type, inspect.IntType):
            check_json(value, where)
            return value
        if len(value) > MAX_LIST_ENTRIES:
            raise InvalidRequest(
                f"{where} has {len(value)} entries, at most {MAX_LIST_ENTRIES}.", where
            )
        return {
            _token_id(key, where): self._take(each, kind.value_type, f"{where}[{key}]")
            for key, each in value.items()
        }


def _too_many(values: list[Any], kind: inspect.ListType) -> bool:
    return len(values) > MAX_LIST_ENTRIES and not isinstance(kind.item_type, inspect.StructType)


def passed_over_header(names: list[str]) -> str:
    """The names as the value of a response header: ASCII, and not too long."""
    # A header's value neither begins nor ends with a space.
    shown_names = (name if name.strip() == name != "" else repr(name) for name in names)
    plain = dict.fromkeys(name.encode("unicode_escape").decode() for name in shown_names)
    text = ", ".join(plain)
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def choices(kind: type, path: str) -> list[Any]:
    """The values that the field at `path` ("response_format.type") may have, where its type lists
    them."""
    found: list[inspect.Type] = [_type_of(kind)]
    for name in re.sub(r"\[[^]]*\]", ".[]", path).split("."):
        found = [below for each in found for below in _below(each, name)]
    return [value for each in found for value in getattr(each, "values", ())]


def _below(kind: inspect.Type, name: str) -> list[inspect.Type]:
    """The types of what stands under a name, or in a list, each alternative by itself."""
    found: list[inspect.Type] = []
    if name == "[]" and isinstance(kind, inspect.ListType):
        found = [kind.item_type]
    elif isinstance(kind, inspect.StructType) and name in _fields_of(kind.cls):
        found = [_fields_of(kind.cls)[name]]
    return [alternative for each in found for alternative in getattr(each, "types", (each,))]


@lru_cache(maxsize=64)
def _type_of(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


@lru_cache(maxsize=64)
def _fields_of(kind: type) -> dict[str, inspect.Type]:
    """Field of a struct -> its type."""
    info = _type_of(kind)
    assert isinstance(info, inspect.StructType), "only structs have fields"
    return {field.encode_name: field.type for field in info.fields}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float, whole: bool, where: str) -> float:
    """A number that fits into 64 bits; a whole one where an integer is meant. What a field allows
    beyond that is its own to say."""
    if isinstance(value, int):
        if not LOWEST_INTEGER <= value <= HIGHEST_INTEGER:
            raise InvalidRequest(
                f"{where} is {shown(value)}; a number must lie in [-2**63, 2**64 - 1].", where
            )
    elif whole and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _token_id(key: str, where: str) -> int:
    if not _INTEGER.fullmatch(key) or not 0 <= int(key) <= MAX_TOKEN_ID:
        raise InvalidRequest(
            f"{where} has the key {shown(key)}; its keys must be token ids, integers from 0 to "
            f"{MAX_TOKEN_ID}.",
            where,
        )
    return int(key)


def _same(value: Any, neutral: Any) -> bool:
    """Whether a value is a neutral one; true and 1 are two things."""
    if neutral is ANY:
        return True
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
