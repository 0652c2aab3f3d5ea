"""What a caller may pass to `LLM` and its asynchronous twin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import msgspec

from ockham.api.adapters import own_adapter_setting
from ockham.api.aliases import own_names
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.sampling_params import MAX_LOGPROBS

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "distributed_executor_backend": (None, "uni", "mp"),
    "enable_chunked_prefill": (None, True),
    "enforce_eager": (False, True),
    "compilation_config": (None,),
    "disable_custom_all_reduce": (False, True),
    "disable_log_stats": (False, True),
    "cpu_offload_gb": (0,),
    "load_format": ("auto", "safetensors"),
    "tokenizer_mode": ("auto", "fast"),
    "tokenizer_revision": (None,),
    "code_revision": (None,),
    "hf_overrides": (None, {}),
    "rope_scaling": (None,),
    "device": ("auto", "cpu"),
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "max_logprobs": (MAX_LOGPROBS,),
    "limit_mm_per_prompt": (None, {}),
    "mm_processor_kwargs": (None, {}),
    "enable_sleep_mode": (False,),
    "enable_prompt_embeds": (False,),
    "override_generation_config": (None, {}),
    "logits_processors": (None, []),
    "kv_transfer_config": (None,),
    "pooler_config": (None,),
    "hf_token": (None,),
    "use_tqdm_on_load": (True, False),
}
"""vLLM's constructor names that have no effect here, and the values at which they are accepted."""

NEUTRAL_IN_CALLS: dict[str, tuple[Any, ...]] = {
    "prompt_adapter_request": (None,),
    "priority": (None, 0),
    "tokenization_kwargs": (None, {}),
    "mm_processor_kwargs": (None, {}),
    "chat_template_content_format": ("auto", "string"),
    "continue_final_message": (False,),
}
"""The same for arguments of `generate` and `chat`."""

_WIDENED = {"half": "float32", "float16": "float32", "float": "float32"}
"""Data types of vLLM's that are computed in one that holds all of their values."""


def engine_config(model: str, settings: Mapping[str, Any]) -> EngineConfig:
    """The engine's settings. Raises ConfigError for a name that is unknown, or a value that is not
    supported."""
    own = {}
    for name, value in own_names(own_adapter_setting(settings)).items():
        if name in EngineConfig.__struct_fields__:
            own[name] = value
        elif name not in NEUTRAL:
            known = ", ".join(EngineConfig.__struct_fields__)
            raise ConfigError(f"there is no setting {name!r}; there are {known}.")
        elif reason := _not_neutral(name, value, NEUTRAL):
            raise ConfigError(reason)
    if "task" in own and own["task"] is None:
        del own["task"]  # as vLLM has it
    dtype = own.get("dtype")
    if isinstance(dtype, str):
        own["dtype"] = _WIDENED.get(dtype, dtype)
    given = {name: _plain(value) for name, value in {"model": model, **own}.items()}
    try:
        return msgspec.convert(given, EngineConfig)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        reason, _, where = str(error).rpartition(" - at `$.")
        reason = reason[:1].lower() + reason[1:].replace("`", "")
        raise ConfigError(f"{where.rstrip('`')} has the wrong type: {reason}.") from None


def check_call(arguments: Mapping[str, Any]) -> None:
    """Raise InvalidRequest unless arguments of a call that do nothing here ask for nothing, and
    TypeError, as Python does, for those that nobody knows."""
    for name, value in arguments.items():
        if name not in NEUTRAL_IN_CALLS:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
        if reason := _not_neutral(name, value, NEUTRAL_IN_CALLS):
            raise InvalidRequest(reason, name)


def _not_neutral(name: str, value: Any, table: Mapping[str, tuple[Any, ...]]) -> str | None:
    """What to say of a value that asks for something; None if it does not."""
    for neutral in table[name]:  # true and 1 are two things, 0 and 0.0 are one
        if isinstance(value, bool) == isinstance(neutral, bool) and value == neutral:
            return None
    accepted = " or ".join(repr(neutral) for neutral in table[name])
    if name in ("runner", "convert"):
        return (
            f"{name}={value!r} is not supported: what a model is for is its task, which the "
            "checkpoint says; else give task='embed', 'classify' or 'score'."
        )
    return (
        f"{name}={shown(value)} is not supported: it is accepted only as {accepted}. Leave it out."
    )


def _plain(value: Any) -> Any:
    """Paths as text, and other libraries' numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value
