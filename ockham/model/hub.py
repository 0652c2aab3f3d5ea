"""From a model argument to a directory: the built-in model, a local path, or a hub name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ockham.core.errors import ModelError
from ockham.model.checkpoint.gguf.names import one_path_each

BUILT_IN = {
    name: Path(__file__).parent / folder
    for name, folder in (("lab", "lab"), ("lab-drafter", "lab_drafter"), ("lab-moe", "lab_moe"))
}
"""Models that the package carries."""

ADAPTERS = {
    f"lab-{name}": Path(__file__).parent / "lab_adapters" / name for name in ("steps", "sentences")
}
"""Adapters of the lab model that the package carries."""

DRAFTERS = {
    f"lab-{name}": Path(__file__).parent / "lab_drafters" / name.replace("-", "_")
    for name in ("medusa", "prompt-tokens", "early-exit")
}
"""Drafters that share the lab model's weights: `ockham draft train` wrote them."""

WANTED_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    "acceptance.safetensors",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*"),
)
"""What is downloaded: never weights in formats that run code when read (.bin, .pth)."""

_QUANTISATION = re.compile(
    r"[-._]((?:I?Q|TQ)\d\w*|BF16|F16|F32)(?:-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE
)
"""How a GGUF file's name ends that names its types."""

_LONGEST_NAME = 255
"""Characters of a hub name, and of a file's, at most."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def could_be_a_model(model: str) -> bool:
    """Whether a text is a built-in model, a path, or spelt as a path or a hub name is; nothing is
    downloaded. "What is up" is none."""
    if model in BUILT_IN or (len(model) <= _LONGEST_NAME and _HUB_NAME.fullmatch(model)):
        return True
    try:
        return bool(model.strip()) and (
            model.startswith(("/", "./", "../", "~"))
            or Path(model).exists()
            or Path(model.rpartition(":")[0] or model).is_dir()
        )
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def served_names(model: str) -> tuple[str, ...]:
    """What a model may be called by the clients of a server: what it was named by, and before that,
    of a GGUF file, its name without folder, ending and number of its part."""
    if not model.endswith(".gguf"):
        return (model,)
    return re.sub(r"-\d{5}-of-\d{5}$", "", Path(model).stem), model


def resolve(model: str, revision: str | None = None) -> Path:
    """The directory of a model, or its GGUF file; a hub name is downloaded, with progress on
    stderr, or found in the cache (`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured).

    `owner/name:Q4_K_M` is the one GGUF file of a repository, or of a local directory, whose name
    ends so. A file that is split into parts is named by one of them.

    Raises ModelError saying what to do if there is no such model, or it cannot be had.
    """
    if not could_be_a_model(model):
        raise ModelError(_no_such(model))
    if revision is not None and (model in BUILT_IN or Path(os.path.expanduser(model)).exists()):
        raise ModelError(
            f"revision {revision!r} means nothing for {model!r}, which is not on the hub; leave it "
            "out, or name a model of the hub."
        )
    if model in BUILT_IN:
        return BUILT_IN[model]
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return _gguf_alone(path)
    if path.exists():
        if path.suffix == ".gguf":
            return path
        raise ModelError(
            f"{model} is a file; name the directory that holds config.json, or a .gguf file."
        )
    directory, _, quantisation = model.rpartition(":")
    if directory and Path(os.path.expanduser(directory)).is_dir():
        return _one_gguf(Path(os.path.expanduser(directory)), _gguf_patterns(quantisation), model)
    if model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(model) or _is_file_name(model):
        raise ModelError(_no_such(model))
    repository, _, quantisation = model.partition(":")
    if not quantisation:
        directory_found = _download(model, revision, WANTED_FILES)
        if not (directory_found / "config.json").exists():
            raise ModelError(_without_config(model, revision, directory_found))
        return directory_found
    patterns = _gguf_patterns(quantisation)
    return _one_gguf(_download(repository, revision, patterns), patterns, model)


def _is_file_name(model: str) -> bool:
    """Whether it is the name of a file in this folder, and of nothing on the hub."""
    return model.endswith(".gguf") and "/" not in model


def _no_such(model: str) -> str:
    if model.endswith(".gguf"):
        return f"there is no file {_shortened(model)!r}; check the name and the folder."
    return (
        f"there is no directory {_shortened(model)!r}; name a checkpoint's directory, a .gguf "
        "file, a model of the Hugging Face hub (owner/name, owner/name:Q4_K_M for a GGUF file), or "
        f"a built-in one: {', '.join(BUILT_IN)}."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def resolve_adapter(adapter: str) -> Path:
    """The directory of a PEFT adapter, by its path or the name of a built-in one. Raises ModelError
    if there is no such directory."""
    path = ADAPTERS.get(adapter, Path(os.path.expanduser(adapter)))
    if not path.is_dir():
        raise ModelError(
            f"there is no directory {adapter!r}; name an adapter's directory, or a built-in one: "
            f"{', '.join(ADAPTERS)}."
        )
    return path


def resolve_drafter(drafter: str) -> Path:
    """The directory of a drafter that `ockham draft train` wrote, by its path or the name of a
    built-in one. Raises ModelError if there is no such directory."""
    path = DRAFTERS.get(drafter, Path(os.path.expanduser(drafter)))
    if drafter in BUILT_IN:
        raise ModelError(f'{drafter} is a model: it drafts by the method "draft_model".')
    if not path.is_dir():
        raise ModelError(
            f"there is no directory {drafter!r}; name one that `ockham draft train` wrote, or a "
            f"built-in drafter: {', '.join(DRAFTERS)}."
        )
    return path


def _gguf_alone(directory: Path) -> Path:
    """A directory, or its GGUF model if it holds one and nothing else that could be meant."""
    if any(directory.glob("*.safetensors")) or any(directory.glob("*.safetensors.index.json")):
        return directory
    found = one_path_each(directory.glob("*.gguf"))
    if len(found) > 1:
        raise ModelError(
            f"{directory} holds several GGUF models: {', '.join(path.name for path in found)}. "
            "Name one of the files."
        )
    return found[0] if found else directory


def _gguf_patterns(quantisation: str) -> list[str]:
    """Of the files, and the parts of files, whose name ends in a quantisation."""
    return [
        f"{start}{spelled}{part}.gguf"
        for part in ("", "-?????-of-?????")
        for start in ("", "*-", "*.", "*_")
        for spelled in (quantisation, quantisation.upper(), quantisation.lower())
    ]


def _one_gguf(directory: Path, patterns: Sequence[str], model: str) -> Path:
    """The file of a directory that `model`, a name such as owner/name:Q4_K_M, stands for."""
    found = one_path_each({path for pattern in patterns for path in directory.rglob(pattern)})
    name, _, quantisation = model.rpartition(":")
    if not found:
        raise ModelError(
            f"{name} has no GGUF file whose name ends in {quantisation}; see which it has, and "
            "name one of them."
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{model} stands for several files: {names}. Name one of them by path.")
    return found[0]


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN "
            "to a token of your account."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name} is neither a local directory nor a model of the Hugging Face hub; if it is "
            "private, set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the model {name} has no revision {revision!r}.") from None
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no name of a model: {error}") from None
    except LocalEntryNotFoundError:
        raise ModelError(_unreachable(name, at)) from None
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise ModelError(f"downloading {name}{at} failed: {error}") from None
    except OSError as error:
        raise ModelError(f"downloading {name}{at} failed: {error}. Try again.") from None


def _without_config(name: str, revision: str | None, snapshot: Path) -> str:
    """What to say of a repository that has no config.json: which GGUF files it has, if any."""
    from huggingface_hub import HfApi, constants

    files = [path.name for path in snapshot.rglob("*.gguf")]
    if not files and not constants.HF_HUB_OFFLINE:
        try:
            listed = HfApi().list_repo_files(name, revision=revision)
            files = [each for each in listed if each.endswith(".gguf")]
        except Exception:  # whatever the network does; the sentence is then a shorter one
            files = []
    found = sorted({match[1] for file in files if (match := _QUANTISATION.search(file))})
    if found:
        names = ", ".join(f"{name}:{quantisation}" for quantisation in found)
        return f"{name} holds GGUF files; name one of them: {names}."
    if files:
        return f"{name} holds GGUF files; name one of them by its path: {', '.join(sorted(files))}."
    return f"{name} has neither a config.json nor GGUF files, so that it is no model."


def _unreachable(name: str, at: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            f"{name}{at} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            "to download it; unset it, or name a local directory."
        )
    return (
        f"{name}{at} is not in the cache {constants.HF_HUB_CACHE}, and the Hugging Face hub cannot "
        "be reached; check the network, or name a local directory."
    )
