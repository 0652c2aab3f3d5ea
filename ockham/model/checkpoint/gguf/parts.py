"""The files that a GGUF model stands in: one, or parts that llama.cpp's `llama-gguf-split` made.

A part's name ends in -00002-of-00003.gguf, and its metadata repeat that: `split.no` (from 0),
`split.count`, and `split.tensors.count` for all parts together. The other metadata stand in the
first part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError
from ockham.core.numbers import shown
from ockham.model.checkpoint.gguf.file import GgufFile, GgufTensor
from ockham.model.checkpoint.gguf.names import part_name

MOST_PARTS = 99_999
"""As many as the names of parts can number."""


class GgufParts:
    """All files of one model, open. `path` may be any of them; messages name `path` of the first.

    Raises ModelError where GgufFile does, and if a part is missing or belongs to something else.
    """

    def __init__(self, path: Path) -> None:
        self.files: list[GgufFile] = []
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._open(path)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        return self.files[0].path

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _open(self, path: Path) -> None:
        named = GgufFile(path)
        self.files = [named]
        count = named.metadata.get("split.count", 1)
        if not isinstance(count, int) or not 0 <= count <= MOST_PARTS:
            raise ModelError(
                f"{named.path} says that it is one of {shown(count)} parts; at most {MOST_PARTS} "
                "are read."
            )
        if count > 1:
            self._open_others(named, count)
        self.metadata = self.files[0].metadata
        for file in self.files:
            for name in file.tensors.keys() & self.tensors.keys():
                raise ModelError(
                    f"{self.tensors[name].file.path} and {file.path} are parts of different models:"
                    f" both hold tensor {name!r}."
                )
            self.tensors |= file.tensors
        stated = self.metadata.get("split.tensors.count")
        if count > 1 and stated != len(self.tensors):
            raise ModelError(
                f"the {count} parts of {self.path} hold {len(self.tensors)} tensors, but should "
                f"hold {stated}: they are parts of different models, or damaged; download them "
                "again."
            )

    def _open_others(self, named: GgufFile, count: int) -> None:
        told = part_name(named.path)
        if told is None or told[2] != count:
            raise ModelError(
                f"{named.path} is one of {count} parts, but its name does not say so; give all "
                f"parts their names back, NAME-00001-of-{count:05d}.gguf and so on."
            )
        paths = [
            named.path.with_name(f"{told[0]}-{number:05d}-of-{count:05d}.gguf")
            for number in range(1, count + 1)
        ]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise ModelError(
                f"{named.path} is one of {count} parts, which stand in one directory, but "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; download "
                "the rest."
            )
        self.files = [named if path == named.path else GgufFile(path) for path in paths]
        for number, file in enumerate(self.files):
            _check_part(file, number, self.files[0])


def _counted(number: Any) -> Any:
    """`split.no`, which counts from 0, as people count."""
    return number + 1 if isinstance(number, int) else number


def _check_part(file: GgufFile, number: int, first: GgufFile) -> None:
    """Raise ModelError unless a file is part `number`, from 0, of the model of the first part."""
    found, count = file.metadata, first.metadata.get("split.count", 1)
    stated = (found.get("split.no"), found.get("split.count"))
    if stated != (number, count) and found.get("split.count") == count:
        counted = shown(_counted(stated[0]))
        raise ModelError(
            f"{file.path} is part {number + 1} by its name, but part {counted} by its metadata; "
            "give the parts their names back."
        )
    for key in found.keys() & first.metadata.keys() - {"split.no", "general.alignment"}:
        if found[key] != first.metadata[key]:
            raise ModelError(
                f"{first.path} and {file.path} are parts of different models: they differ in "
                f"{key!r}."
            )
    if found.get("split.count") != count:
        raise ModelError(f"{file.path} does not say that it is one of {count} parts.")
