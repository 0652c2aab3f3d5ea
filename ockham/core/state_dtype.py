"""The names of the types in which keys and values are kept (`EngineConfig.kv_cache_dtype`)."""

from __future__ import annotations

from ockham.core.errors import ConfigError

PLAIN = ("bfloat16", "float32")
CODED = ("int8", "int4")
"""Integers, with a scale for each token and head."""

ALIASES = {
    "bf16": "bfloat16",
    "f32": "float32",
    "fp32": "float32",
    "float": "float32",
    "q8_0": "int8",
    "q4_0": "int4",
    "iq4_nl": "int4",
    "int8_per_token_head": "int8",
}
"""Names of llama.cpp's and vLLM's for what is the same here, or near enough: 32 elements share a
scale in llama.cpp, here all elements of a head do, and int4 is rotated first."""

_ABSENT = {
    "fp8": ("8-bit floats are", "int8"),
    "f16": ("half precision is", "bfloat16"),
    "float16": ("half precision is", "bfloat16"),
    "half": ("half precision is", "bfloat16"),
    "q4_1": ("a minimum beside the scale is", "int4"),
    "q5_": ("5 bits are", "int8 or int4"),
}
"""How names begin that others have: what is not supported, and what is nearest to it."""


def check_state_dtype(text: str) -> None:
    """Raise ConfigError, with what may be named, unless `canonical` understands `text`."""
    if text != "auto":
        canonical(text)


def canonical(text: str) -> str:
    """The one name of what `text` names: a type of keys and values, or "k=TYPE,v=TYPE" with two
    that differ. "/" may stand for the comma where a comma separates settings.

    Raises ConfigError, with what may be named, for everything else.
    """
    if "=" not in text:
        return _type(text, text)
    parts = [part.strip().split("=", 1) for part in text.replace("/", ",").split(",")]
    if sorted(part[0].strip() for part in parts) != ["k", "v"] or any(len(p) != 2 for p in parts):
        raise _unknown(text)
    named = {name.strip(): _type(kind.strip(), text) for name, kind in parts}
    keys, values = named["k"], named["v"]
    if keys == values:
        return keys
    if keys in PLAIN or values in PLAIN:
        raise ConfigError(
            f"kv_cache_dtype {text!r} keeps keys in {keys} and values in {values}; they may differ "
            f"only where both are one of {', '.join(CODED)}."
        )
    return f"k={keys},v={values}"


def state_types(dtype: str) -> tuple[str, str]:
    """The types of keys and of values in what `canonical` gives."""
    if "=" not in dtype:
        return dtype, dtype
    named = dict(each.split("=", 1) for each in dtype.split(","))
    return named["k"], named["v"]


def _type(name: str, text: str) -> str:
    name = ALIASES.get(name.lower(), name.lower())
    if name in (*PLAIN, *CODED):
        return name
    for start, (what, nearest) in _ABSENT.items():
        if name.startswith(start):
            raise ConfigError(
                f"kv_cache_dtype {text!r}: {what} not supported for keys and values; "
                f"take {nearest}."
            )
    raise _unknown(text)


def _unknown(text: str) -> ConfigError:
    known = ", ".join(("auto", *PLAIN, *CODED))
    return ConfigError(
        f"kv_cache_dtype must be one of {known}, or a type for keys and one for values as in "
        f"'k=int8,v=int4', got {text!r}."
    )
