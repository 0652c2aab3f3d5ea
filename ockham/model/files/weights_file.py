"""Files of weights, read with `preadv` into buffers of our own.

A file that is truncated or replaced while it is read gives an error that names it, where a mapping
would kill the process, and the memory taken is what the buffers take. Only packed weights are
mapped, after every byte of them was read and checked (see packed/file.py).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ModelError
from ockham.kernels.mapping import map_over
from ockham.model.files.untrusted import open_regular

HEAD_BYTES = 256 << 10
"""Bytes at a file's start, its header in most cases, that are part of its identity."""


class WeightsFile:
    """One open file of weights."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = open_regular(path, "file of weights")
        except OSError as error:
            raise ModelError(f"cannot open the weights {path}: {error.strerror}.") from None

    @property
    def nbytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def identity(self) -> dict[str, Any]:
        """What changes whenever the file does, found without reading it: its inode, size, times of
        its last change (which whoever writes to it cannot set back), and a hash of its start."""
        stat = os.fstat(self._descriptor)
        head = bytearray(min(HEAD_BYTES, stat.st_size))
        self.read_into(memoryview(head), 0, "its start")
        return {
            "inode": stat.st_ino,
            "bytes": stat.st_size,
            "modified_ns": stat.st_mtime_ns,
            "changed_ns": stat.st_ctime_ns,
            "head": hashlib.blake2b(head, digest_size=16).hexdigest(),
        }

    def map_into(self, memory: npt.NDArray[np.uint8], offset: int) -> bool:
        """Show the bytes from `offset` on in allocated memory; False if that cannot be done. See
        `kernels.mapping.map_over`."""
        return map_over(memory, self._descriptor, offset)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def read_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill `buffer` from byte `offset`; raises ModelError where the file ends before that."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise ModelError(
                    f"reading {what} from {self.path} failed: {error.strerror}."
                ) from None
            if count == 0:
                raise ModelError(
                    f"{self.path} ends at byte {offset + done}, inside {what}: the file is "
                    "truncated; download or copy it again."
                )
            done += count
