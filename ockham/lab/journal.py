"""Results on disk as they come, so that a run that was killed goes on where it stood.

A JSONL file: the first line holds the settings that decide the results, each further line one
result. A line that a kill cut short is dropped, and its work done again. A file that does not begin
as a journal does is refused, and stays as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from ockham.core.errors import ConfigError
from ockham.core.owned_files import USUAL_FILE, open_own

R = TypeVar("R", bound=msgspec.Struct)

KIND = "ockham eval"


class Journal(Generic[R]):
    """The results of one run so far (`results`), and where the next ones go.

    Without a path nothing is written. Raises ConfigError if the file belongs to a run with other
    settings, or is no journal.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        result: type[R],
        *,
        kind: str = KIND,
        what: str = "an evaluation",
        flag: str = "--resume",
    ) -> None:
        """`kind` is the command whose results they are, `what` its noun, `flag` names the file."""
        self.path = path
        self._kind, self._what, self._flag = kind, what, flag
        self.results: list[R] = []
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()
        if path is None:
            return
        start = b'{"kind":"%s",' % kind.encode()
        head = msgspec.json.decode(msgspec.json.encode({"kind": kind, **settings}))
        try:
            # A link is the user's to give; what is no file would be waited for, or cannot be cut.
            descriptor = open_own(os.path.realpath(path), os.O_RDWR | os.O_CREAT, USUAL_FILE)
            self._file = os.fdopen(descriptor, "r+b")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be a file of {what} ({error.strerror}); name another with {flag}."
            ) from error
        try:
            stored = self._file.read()
            whole = stored[: stored.rfind(b"\n") + 1]
            if whole:
                self._take_over(whole.splitlines(), head, result)
            elif not start.startswith(stored[: len(start)]):
                raise ConfigError(f"{path} is no file of {what}; name another with {flag}.")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write(head)
        except BaseException as error:
            with contextlib.suppress(OSError):  # what could not be written is not there
                self._file.close()
            if isinstance(error, OSError):
                raise ConfigError(
                    f"{path} cannot be written ({error.strerror}); name another with {flag}."
                ) from error
            raise

    def add(self, result: R) -> None:
        """Keep a result; it is in the operating system's hands when this returns."""
        self.results.append(result)
        self._write(result)

    def _write(self, line: Any) -> None:
        if self._file is not None:
            self._file.write(self._encoder.encode(line) + b"\n")
            self._file.flush()

    def _take_over(self, lines: list[bytes], head: Mapping[str, Any], result: type[R]) -> None:
        try:
            found = msgspec.json.decode(lines[0], type=dict[str, Any])
            if found.get("kind") != self._kind:
                raise ValueError("its first line has no settings")
            decoder = msgspec.json.Decoder(result)
        except ValueError as error:
            raise ConfigError(
                f"{self.path} is no file of {self._what} ({error}); name another with {self._flag}."
            ) from error
        differing = [name for name in {**head, **found} if head.get(name) != found.get(name)]
        if differing:
            name = differing[0]
            others = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
            raise ConfigError(
                f"{self.path} was written with {name} {found.get(name)!r}, but this run has "
                f"{head.get(name)!r}{others}; run with the same settings, or name another file."
            )
        try:
            self.results = [decoder.decode(line) for line in lines[1:]]
        except ValueError as error:
            raise ConfigError(f"{self.path} holds a line that is no result ({error}).") from error

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal[R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
