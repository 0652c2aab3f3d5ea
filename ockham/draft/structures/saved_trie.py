"""A trie in a file, from one run of an engine to the next."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np

from ockham.core.errors import ConfigError
from ockham.core.owned_files import NotOurs, write_own
from ockham.draft.structures.branch_trie import Trie
from ockham.draft.structures.tenants import Tenants

_KIND = "ockham trie 1"


class _Saved(msgspec.Struct):
    """`records` are those of `Trie.records`, little-endian; `digest` is of all the rest."""

    kind: str
    vocabulary: str
    tenants: dict[str, int]
    records: bytes
    digest: str = ""

    def sealed(self) -> str:
        rest = msgspec.structs.replace(self, digest="")
        return hashlib.sha256(msgspec.msgpack.encode(rest)).hexdigest()


def check_place(file: str) -> None:
    """Raises ConfigError if nothing can be written there."""
    path = Path(os.path.realpath(file))
    wrong = path.exists() and not path.is_file()  # a directory, or what would be waited for
    if wrong or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"learned_file {file!r} cannot be written; name a file in a directory that can be "
            "written to."
        )


def load_trie(file: str, vocabulary: str, trie: Trie, tenants: Tenants) -> None:
    """Make an empty trie what the file holds, if there is one.

    Raises ConfigError if the file is damaged, holds the tokens of another vocabulary, or more than
    there is room for.
    """
    try:
        data = Path(file).read_bytes() if Path(file).is_file() else b""
    except OSError as error:
        raise ConfigError(f"learned_file {file!r} cannot be read ({error}).") from None
    if not data:
        return
    saved = _saved(data)
    if saved is None:
        raise ConfigError(
            f"learned_file {file!r} is damaged, or no such file; delete it or name another."
        )
    if saved.vocabulary != vocabulary:
        raise ConfigError(
            f"learned_file {file!r} was learned with another vocabulary "
            f"({saved.vocabulary[:12]}, here {vocabulary[:12]}); name another file for this model."
        )
    records = np.frombuffer(saved.records, "<i4").astype(np.int32).reshape(-1, 4)
    try:
        trie.restore(records)
    except ValueError as error:
        raise ConfigError(
            f"learned_file {file!r} cannot be taken in: {error} Raise learned_bytes, or delete it."
        ) from None
    tenants.restore(saved.tenants)


def save_trie(file: str, vocabulary: str, trie: Trie, tenants: Tenants) -> None:
    """Write the file as a whole, or leave what stands there. It is readable by its owner alone.

    Raises OSError, also if something else was put there since it was read.
    """
    records = np.ascontiguousarray(trie.records(), "<i4").tobytes()
    saved = _Saved(_KIND, vocabulary, tenants.numbers, records)
    saved.digest = saved.sealed()
    path = Path(os.path.realpath(file))  # a link is the user's to give
    found = path.read_bytes() if path.is_file() else b""
    if found and _saved(found) is None:
        raise NotOurs("what stands there is no such file")
    write_own(path, msgspec.msgpack.encode(saved))


def _saved(data: bytes) -> _Saved | None:
    """What a file holds; None if it is damaged, or no such file."""
    try:
        saved = msgspec.msgpack.decode(data, type=_Saved)
    except msgspec.DecodeError:
        return None
    return saved if saved.kind == _KIND and saved.digest == saved.sealed() else None
