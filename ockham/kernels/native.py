"""The native core, where it could be built.

`core` is the module `ockham.kernels._cpu`, or None; then `reason` says why in a sentence.
"""

from __future__ import annotations

import functools
import shutil

from ockham.core.errors import ConfigError
from ockham.kernels.cores import allowed_cores

__all__ = ["chosen_isa", "core", "packing_pool", "reason"]

try:
    import ockham.kernels._cpu as core

    reason = ""
except ImportError as error:
    core = None  # type: ignore[assignment]
    if any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        reason = (
            f"the native core could not be loaded ({error}); it was not built, or for another "
            "Python: install Ockham again with pip's --verbose to see why."
        )
    else:
        reason = "the native core was not built, because no C++ compiler was found (install g++)."


def chosen_isa() -> core.Isa:
    """The instruction set that OCKHAM_ISA names, else the best that runs here.

    Raises ConfigError for a name that is none, or that this processor lacks.
    """
    try:
        return core.chosen()
    except RuntimeError as error:
        raise ConfigError(str(error)) from error


@functools.cache
def packing_pool() -> core.ThreadPool:
    """The threads that pack weights: all cores, asleep when nothing is packed."""
    return core.ThreadPool(allowed_cores())
