"""The files of a tokenizer: tokenizer.json, what stands beside it, and chat templates.

They are a stranger's: each is read with a bound, and what is wrong with it is a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ModelError
from ockham.model.files.untrusted import read_object
from ockham.text.growth import check_growth

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MOST_TEMPLATE_BYTES = 4 << 20
_NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_backend(directory: Path) -> Backend:
    import tokenizers

    path = directory / "tokenizer.json"
    if not path.is_file():
        hint = ""
        if any((directory / name).exists() for name in ("tokenizer.model", "vocab.json")):
            hint = (
                " There is one in an older format: convert it once with transformers, "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        raise ModelError(
            f"{directory} has no tokenizer.json.{hint} Name a tokenizer with --tokenizer, or take "
            "--skip-tokenizer-init and give prompts as token ids."
        )
    try:
        described = path.read_bytes()
        check_growth(described, path)
        backend = tokenizers.Tokenizer.from_buffer(described)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception for every defect
        raise ModelError(
            f"{path} cannot be read as a tokenizer ({error}). Fetch it again, name another with "
            "--tokenizer, or take --skip-tokenizer-init and give prompts as token ids."
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). Fetch it again.") from error


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name ("eos_token") -> spelling, from entries that are strings or {"content": ...}."""
    named = {}
    for name in _NAMED_SPECIAL_TOKENS:
        entry = config.get(name)
        spelling = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(spelling, str):
            named[name] = spelling
    return named


def read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> chat template. Files beside tokenizer_config.json go before what stands in it."""
    templates: dict[str, str] = {}
    entry = config.get("chat_template")
    if isinstance(entry, str):
        templates["default"] = entry
    elif isinstance(entry, list):
        for named in entry:
            if not isinstance(named, Mapping) or not {"name", "template"} <= named.keys():
                raise ModelError(
                    f"{directory / 'tokenizer_config.json'}: an entry of chat_template has no name "
                    "or no template."
                )
            templates[str(named["name"])] = str(named["template"])
    legacy = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(legacy, str):
        templates["default"] = legacy
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_template(path)
    single = directory / "chat_template.jinja"
    if single.exists():
        templates["default"] = read_template(single)
    return templates


def read_template(path: Path) -> str:
    """The text of a template. Raises ModelError."""
    try:
        if not path.is_file():
            raise ModelError(f"the chat template {path} is no regular file.")
        if path.stat().st_size > MOST_TEMPLATE_BYTES:
            raise ModelError(
                f"the chat template {path} has {path.stat().st_size} bytes; at most "
                f"{MOST_TEMPLATE_BYTES} are taken."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template {path} cannot be read ({error}).") from error
