"""The state of other identities in a store's directory. It stays until its room is needed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ockham.cache.store.names import Identity
from ockham.core.owned_files import NotOurs, Owned, named, open_directory, open_file, read_own

log = logging.getLogger("ockham.store")

LOCK, MARKER, INDEX, PAGES = "lock", "store.json", "index", "pages"


def _proves(name: str, directory: int) -> bool:
    identity = msgspec.json.decode(read_own(MARKER, directory), type=Identity)
    return identity.digest == name


STORES = Owned(MARKER, frozenset({INDEX, PAGES, "store.partial"}), _proves)
"""The directory of one identity; earlier versions wrote store.json by way of store.partial."""


class Others:
    """What a store's directory holds beside the identity at `own`. Strangers are said, and left
    alone."""

    def __init__(self, directory: Path, own: Path) -> None:
        found: list[tuple[int, Path]] = []
        strangers: list[str] = []
        for path in directory.iterdir():
            if STORES.owns(path):
                if path != own:
                    found.append((path.lstat().st_mtime_ns, path))
            elif path != own and path.name != LOCK:
                strangers.append(path.name)
        self._bytes = {path: STORES.nbytes(path) for _, path in sorted(found)}
        """Directory -> its bytes; what was used longest ago comes first."""
        if strangers:
            log.warning(
                "the KV store's directory %s holds what is not Ockham's (%s): it is left alone, "
                "and not counted in kv_store_bytes.",
                directory,
                named(strangers),
            )

    @property
    def nbytes(self) -> int:
        return sum(self._bytes.values())

    def oldest_first(self) -> list[Path]:
        return list(self._bytes)

    def remove(self, path: Path) -> None:
        """Remove the state of another identity; what cannot be removed goes on to count."""
        try:
            with _unused(path):
                left = STORES.remove(path)
        except FileNotFoundError:
            left = []  # somebody else removed it
        except OSError as error:
            log.warning("the old store %s cannot be removed (%s).", path, error.strerror)
            return
        del self._bytes[path]
        if left:
            log.warning(
                "the old store %s was removed, but the directory stays: %a in it is not Ockham's.",
                path,
                left[0],
            )


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold the store of an identity. Raises NotOurs if an engine holds it, by whatever path it came
    there, and OSError."""
    with contextlib.ExitStack() as held:
        directory = held.enter_context(open_directory(path))
        try:
            index = held.enter_context(open_file(INDEX, os.O_RDWR, directory))
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotOurs("another engine uses it") from None
        except FileNotFoundError:
            pass  # a kill left it so
        yield
