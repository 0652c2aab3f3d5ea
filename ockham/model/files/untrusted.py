"""Reading what a checkpoint's author wrote, who need not mean well.

A file is read only if it is a regular one (opening a FIFO would wait for its writer), up to a limit
of bytes, and JSON is parsed only up to a limit of values, because each takes some hundred bytes of
memory. What is wrong is a ModelError with a sentence.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ockham.core.errors import ModelError

MOST_JSON_BYTES = 100_000_000
"""Of one JSON text: the limit that safetensors sets for its header."""

MOST_JSON_VALUES = 4_000_000
"""Of one JSON text, counted by its brackets and commas: the headers of the largest checkpoints have
a million."""


def open_regular(path: Path, what: str = "file") -> int:
    """A descriptor of a regular file, open for reading. Raises ModelError for anything else, and
    OSError as `os.open` does."""
    # Without O_NONBLOCK opening a FIFO would wait; a regular file does not know the difference.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelError(f"{path} is no regular {what}, so it is not read.")
    return descriptor


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ModelError for a file that is no regular one, too large, or no
    JSON, and OSError if it cannot be opened or read."""
    with open(open_regular(path), "rb") as file:
        raw = file.read(MOST_JSON_BYTES + 1)
    return parse_json(raw, str(path))


def parse_json(raw: bytes | bytearray, what: str) -> Any:
    """The value of a JSON text that an error calls `what`. Raises ModelError if it is none, is too
    large or has too many values."""
    if len(raw) > MOST_JSON_BYTES:
        raise ModelError(
            f"{what} has {len(raw)} bytes or more; at most {MOST_JSON_BYTES} are read."
        )
    values = sum(raw.count(mark) for mark in (b"[", b"{", b","))
    if values > MOST_JSON_VALUES:
        raise ModelError(
            f"{what} holds about {values} values; at most {MOST_JSON_VALUES} are read."
        )
    try:
        return json.loads(raw.decode())
    except ValueError as error:  # of UnicodeDecodeError, JSONDecodeError and numbers too long
        raise ModelError(f"{what} cannot be read: it is not JSON ({error}).") from None
    except RecursionError:
        raise ModelError(f"{what} is nested too deeply to be read.") from None


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` where it is an object; raises ModelError if it is something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return found
