"""Names of GGUF files. Imported wherever a model is named, so it imports no reader."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PROJECTOR = "mmproj"
"""How the names of files begin that hold only a model's vision part."""


def is_projector(path: Path) -> bool:
    """Whether a file holds only a model's vision part, by its name."""
    return path.name.startswith(_PROJECTOR)


def part_name(path: Path) -> tuple[str, int, int] | None:
    """What the name of a part says: its model's name, its number from 1, how many there are."""
    found = _PART.fullmatch(path.name)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def one_path_each(paths: Iterable[Path]) -> list[Path]:
    """Of these files those that name a language model each: of several parts the first."""
    first: dict[tuple[Path, str, int], Path] = {}
    for path in sorted(paths):
        if not is_projector(path):
            name, _, count = part_name(path) or (path.name, 1, 1)
            first.setdefault((path.parent, name, count), path)
    return list(first.values())
