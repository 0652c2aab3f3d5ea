"""Files of weights, read with `preadv` into buffers of our own and never mapped.

A file that is truncated or replaced while it is read gives an error that names it, where a mapping
would kill the process, and the memory taken is what the buffers take.
"""

from __future__ import annotations

import os
from pathlib import Path

from ockham.core.errors import ModelError


class WeightsFile:
    """One open file of weights."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelError(f"cannot open the weights {path}: {error.strerror}.") from None

    @property
    def nbytes(self) -> int:
        return os.fstat(self._descriptor).st_size

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
