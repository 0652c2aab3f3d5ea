"""What a caller may pass to `LLM` and its asynchronous twin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "distributed_executor_backend": (None, "uni"),
    "enable_chunked_prefill": (None, True),
    "enable_lora": (False,),
    "enforce_eager": (False, True),
    "compilation_config": (None,),
    "disable_custom_all_reduce": (False, True),
    "disable_log_stats": (False, True),
    "cpu_offload_gb": (0,),
    "load_format": ("auto", "safetensors"),
    "tokenizer_mode": ("auto", "fast"),
    "tokenizer_revision": (None,),
    "code_revision": (None,),
    "hf_overrides": (None,),
    "rope_scaling": (None,),
    "device": ("auto", "cpu"),
}
"""vLLM's constructor names that have no effect here, and the values at which they are accepted."""


def engine_config(model: str, settings: Mapping[str, Any]) -> EngineConfig:
    """The engine's settings. Raises ConfigError for a name that is unknown, or a value that is not
    supported."""
    own = {}
    for name, value in settings.items():
        if name in EngineConfig.__struct_fields__:
            own[name] = value
        elif name not in NEUTRAL:
            known = ", ".join(EngineConfig.__struct_fields__)
            raise ConfigError(f"there is no setting {name!r}; there are {known}.")
        elif value not in NEUTRAL[name]:
            accepted = " or ".join(repr(neutral) for neutral in NEUTRAL[name])
            raise ConfigError(
                f"{name}={value!r} is not supported: it is accepted only as {accepted}. "
                "Leave it out."
            )
    given = {name: _plain(value) for name, value in {"model": model, **own}.items()}
    try:
        return msgspec.convert(given, EngineConfig)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        reason, _, where = str(error).rpartition(" - at `$.")
        reason = reason[:1].lower() + reason[1:].replace("`", "")
        raise ConfigError(f"{where.rstrip('`')} has the wrong type: {reason}.") from None


def _plain(value: Any) -> Any:
    """Paths as text, and other libraries' numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value
