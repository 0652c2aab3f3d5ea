"""The native core, where it could be built.

`core` is the module `ockham.kernels._cpu`, or None; then `reason` says why in a sentence.
"""

from __future__ import annotations

import functools
import os
import shutil

__all__ = ["available_cores", "core", "packing_pool", "reason"]

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


def available_cores() -> int:
    """The cores that this process may use: its affinity, and the limit of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_cores()))


def _cgroup_cores() -> int:
    """The whole cores that the cgroup's quota allows, version 2 or 1; many where there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", encoding="ascii") as file:
                quota = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us", encoding="ascii") as file:
                period = file.read().strip()
        except OSError:
            return 1 << 16
    if not quota.isdigit() or not period.isdigit() or period == "0":
        return 1 << 16
    return max(1, int(quota) // int(period))


@functools.cache
def packing_pool() -> core.ThreadPool:
    """The threads that pack weights: all cores, asleep when nothing is packed."""
    return core.ThreadPool(available_cores())
