"""What models and Ockham's caches hold on this machine, and how it is removed.

Three owners: the hub's cache, which only the hub's own library deletes from; packed weights and
stores of prompts, of which `core.owned_files` removes what is proven to be Ockham's; and packages,
which pip removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ockham.cache.store.others import LOCK, STORES
from ockham.core.errors import ConfigError
from ockham.core.owned_files import NotOurs, hold
from ockham.model.hub_gguf import gguf_models
from ockham.model.known_models import (
    PACKAGES,
    Repository,
    named_repository,
    packaged_file,
    without_host,
)
from ockham.model.packed.weight_cache import ENTRIES, cache_directory, kept_entries

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, HFCacheInfo

Kind = Literal["hub", "package", "packed", "store"]

DIGITS = 12
"""Of a digest, so many stand in a name."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that takes room on the disk.

    `name` is what `ockham rm` takes. `model` is the model that it belongs to, as far as that is
    known, `detail` what else is said of it. `used_s` is when it was used last, in seconds of the
    epoch. `remove` frees it and gives the bytes that it freed, or None where Ockham may not.
    """

    name: str
    kind: Kind
    nbytes: int
    path: Path
    model: str = ""
    detail: str = ""
    used_s: float | None = None
    remove: Callable[[], int] | None = None

    def belongs_to(self, name: str) -> bool:
        """Whether it is meant by a name: its own, the beginning of its digest, or its model's."""
        if name == self.name or (":" in self.name and name == self.kind):
            return True
        start = f"{self.kind}:"
        if name.startswith(start) and len(name) > len(start):
            return self.path.name.startswith(name.removeprefix(start))
        return bool(self.model) and _same_model(name, self.model)


def _same_model(name: str, other: str) -> bool:
    """Whether two names mean one model; `name` may leave the quantisation open."""
    if name == other:
        return True
    if any(Path(os.path.expanduser(each)).exists() for each in (name, other)):
        return False
    one, two = named_repository(name), named_repository(other)
    quantisation = (one.quantisation or "").lower()
    return one.name == two.name and quantisation in ("", (two.quantisation or "").lower())


def everything(weight_cache: str | None, kv_store: str | None) -> list[Kept]:
    """All that is kept: on the hub's part, in packages, packed weights, and in a store if named."""
    return [*from_hub(), *packages(), *packed(weight_cache), *stores(kv_store)]


# -- the hub's cache ---------------------------------------------------------------------------


def from_hub() -> Iterator[Kept]:
    """The repositories of models in the hub's cache, by the hub's library."""
    info = _hub_cache()
    for repository in sorted(info.repos, key=lambda each: each.repo_id) if info else ():
        if repository.repo_type == "model":
            models = [each.quantisation for each in gguf_models(_gguf_files(repository))]
            yield Kept(
                repository.repo_id,
                "hub",
                repository.size_on_disk,
                repository.repo_path,
                model=repository.repo_id,
                detail=", ".join(dict.fromkeys(each for each in models if each)),
                used_s=repository.last_accessed,
                remove=_deletion(repository),
            )


def of_repository(repository: Repository) -> list[Kept]:
    """What the hub's cache holds of a repository: all of it, or the file of its quantisation."""
    whole = [each for each in from_hub() if each.name == repository.name]
    if repository.quantisation is None or not whole:
        return whole
    info = _hub_cache()
    assert info is not None, "something was found in it"
    (cached,) = (each for each in info.repos if each.repo_path == whole[0].path)
    wanted = repository.quantisation.upper()
    models = gguf_models(_gguf_files(cached))
    names = {name for each in models if each.quantisation == wanted for name in each.files}
    files = [
        file
        for revision in cached.revisions
        for file in revision.files
        if str(file.file_path.relative_to(revision.snapshot_path)) in names
    ]
    if not files:
        return []
    return [
        Kept(
            f"{repository.name}:{wanted}",
            "hub",
            sum({file.blob_path: file.size_on_disk for file in files}.values()),
            cached.repo_path,
            model=repository.name,
            used_s=max(file.blob_last_accessed for file in files),
            remove=_deletion_of_files(files),
        )
    ]


def _hub_cache() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    with contextlib.suppress(CacheNotFound):
        return scan_cache_dir()
    return None


def _gguf_files(repository: CachedRepoInfo) -> Iterator[tuple[str, int]]:
    for revision in repository.revisions:
        for file in revision.files:
            path = file.file_path.relative_to(revision.snapshot_path)
            if path.suffix == ".gguf":
                yield str(path), file.size_on_disk


def _deletion(repository: CachedRepoInfo) -> Callable[[], int]:
    def remove() -> int:
        info = _hub_cache()
        assert info is not None, "it was there when it was listed"
        strategy = info.delete_revisions(*(each.commit_hash for each in repository.revisions))
        strategy.execute()
        return strategy.expected_freed_size

    return remove


def _deletion_of_files(files: list[CachedFileInfo]) -> Callable[[], int]:
    def remove() -> int:
        info = _hub_cache()
        assert info is not None, "it was there when it was listed"
        if not hasattr(info, "delete_files"):
            raise ConfigError(
                "this version of huggingface_hub deletes whole repositories only; name the "
                "repository, or upgrade huggingface_hub."
            )
        strategy = info.delete_files(*files)
        strategy.execute()
        return strategy.expected_freed_size

    return remove


# -- packages ----------------------------------------------------------------------------------


def packages() -> Iterator[Kept]:
    """Models that installed packages carry."""
    for name, (_, requirement) in PACKAGES.items():
        file = packaged_file(Repository(name))
        if file is not None:
            package = requirement.partition("==")[0]
            files = [each for each in (file, *file.rglob("*")) if each.is_file()]
            yield Kept(
                package,
                "package",
                sum(each.stat().st_size for each in files),
                file,
                model=name,
                detail=f"pip uninstall {package} removes it",
                used_s=file.stat().st_atime,
            )


# -- packed weights and stores -----------------------------------------------------------------


OLDER = "packed by an older Ockham, which did not write down of which model"


def packed(weight_cache: str | None) -> Iterator[Kept]:
    """Packed weights, what was used last first."""
    directory = cache_directory(weight_cache)
    for entry in kept_entries(directory) if directory is not None else ():
        yield Kept(
            f"packed:{entry.directory.name[:DIGITS]}",
            "packed",
            entry.nbytes,
            entry.directory,
            model=entry.model,
            detail=f"of {entry.model}" if entry.model else OLDER,
            used_s=entry.used_ns / 1e9,
            remove=partial(_remove_owned, ENTRIES.remove, ENTRIES.nbytes, entry.directory),
        )


def stores(kv_store: str | None) -> Iterator[Kept]:
    """Keys and values in the directory of a `--kv-store`. Raises ConfigError if there is none."""
    if kv_store is None:
        return
    directory = Path(kv_store).expanduser()
    if not directory.is_dir():
        raise ConfigError(
            f"there is no directory {kv_store!r}, so that there is no KV store in it."
        )
    for path in sorted(directory.iterdir()):
        if STORES.owns(path):
            yield Kept(
                f"store:{path.name[:DIGITS]}",
                "store",
                STORES.nbytes(path),
                path,
                detail=f"prompts, in {directory}",
                used_s=path.stat().st_mtime,
                remove=partial(_remove_store, path),
            )


def _remove_store(path: Path) -> int:
    """Remove the state of one identity, unless an engine has the directory."""
    try:
        lock = hold(path.parent / LOCK)
    except BlockingIOError:
        raise ConfigError(
            f"an engine uses the KV store {path.parent}; end it before anything is removed."
        ) from None
    try:
        return _remove_owned(STORES.remove, STORES.nbytes, path)
    finally:
        os.close(lock)


def _remove_owned(
    remove: Callable[[Path], list[str]], nbytes: Callable[[Path], int], path: Path
) -> int:
    before = nbytes(path)
    try:
        remove(path)
    except NotOurs as error:
        raise ConfigError(f"{path} stays: {error.strerror}.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed: {error.strerror}.") from None
    return before - (nbytes(path) if path.exists() else 0)


def meant(name: str, kept: Iterable[Kept]) -> list[Kept]:
    """What a name given to `ockham rm` stands for."""
    found = [each for each in kept if each.kind != "hub" and each.belongs_to(name)]
    if name.partition(":")[0] in ("packed", "store") or name in (each.name for each in found):
        return found
    return [*of_repository(named_repository(without_host(name))), *found]
