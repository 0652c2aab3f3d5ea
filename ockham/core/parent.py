"""A child process ends with its parent, whatever ends the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent ends, even in the middle of C code.

    Linux means the parent's thread that started this process: it must live as long as the parent
    wants the child. `parent` is the parent's process id; if it ended before this call, this process
    ends now. Elsewhere this does nothing, and the end of a pipe or socket has to say the same.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
