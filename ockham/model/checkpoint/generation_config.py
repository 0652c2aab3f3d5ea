"""What a checkpoint says of generation: the tokens that end it, and how its authors sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError, ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.model.files.untrusted import read_object

CHECKPOINTS, NEUTRAL = "auto", "vllm"
"""Values of the setting `generation_config` that name no directory."""

CHAT = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
"""How chats are sampled where the checkpoint does not say: llama.cpp's defaults. The tail of the
distribution is cut off, which a small model cannot do without."""

_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Keys of generation_config.json that vLLM applies -> the sampling parameter each sets."""

_GGUF = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Key of a GGUF file's metadata after `general.sampling.` -> key of generation_config.json."""

_DIGITS = 7
"""Of a number that was rounded to 32 bits, so many are meant."""


def read_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json of a checkpoint; empty where there is none. Raises ModelError."""
    path = directory / "generation_config.json"
    if not path.exists():
        return {}
    try:
        return read_object(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def gguf_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a GGUF file, whose metadata has it since 2025."""
    found = {}
    for theirs, ours in _GGUF.items():
        value = metadata.get(f"general.sampling.{theirs}")
        if isinstance(value, float):
            value = float(f"{value:.{_DIGITS}g}")
        if value is not None:
            found[ours] = value
    return found


def chosen_generation_config(setting: str, own: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's own configuration, or that of the directory that the setting names. Raises
    ConfigError if there is none."""
    if setting in (CHECKPOINTS, NEUTRAL):
        return own
    directory = Path(setting).expanduser()
    if not (directory / "generation_config.json").is_file():
        raise ConfigError(
            f"generation_config={setting!r} must be 'auto', 'vllm', or a directory with a "
            "generation_config.json."
        )
    return read_generation_config(directory)


def sampling_defaults(generation_config: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """The sampling parameters that a checkpoint sets, as vLLM reads them: none where the setting is
    "vllm". Raises ModelError if one of them cannot be."""
    if setting == NEUTRAL:
        return {}
    defaults = {
        ours: generation_config[theirs]
        for theirs, ours in _SAMPLING.items()
        if generation_config.get(theirs) is not None
    }
    try:
        SamplingParams(**defaults)
    except ValueError as error:
        raise ModelError(f"the model's generation_config.json cannot be used: {error}") from error
    return defaults


def chat_defaults(defaults: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """The sampling parameters of chats: the checkpoint's own, or `CHAT` where it sets none of
    these. The setting "vllm" leaves them neutral."""
    if setting == NEUTRAL or any(name in defaults for name in CHAT):
        return dict(defaults)
    return {**CHAT, **defaults}
