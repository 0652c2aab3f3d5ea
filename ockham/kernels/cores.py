"""The processor, and how many cores this process may use."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path


def allowed_cores() -> int:
    """Cores that this process may use: its affinity, cut down by the quotas of its cgroups."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """Cores that the process's cgroups (v2 and v1) grant, from its own up to the root."""
    quotas = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _quotas_upwards(Path("/sys/fs/cgroup"), path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas_upwards(Path("/sys/fs/cgroup/cpu"), path, _quota_v1)
    return quotas


def _quotas_upwards(
    mount: Path, path: str, quota_of: Callable[[Path], float | None]
) -> list[float]:
    own = mount / path.strip("/")
    groups = [group for group in (own, *own.parents) if group.is_relative_to(mount)]
    return [quota for group in groups if (quota := quota_of(group)) is not None]


def _quota_v2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _quota_v1(group: Path) -> float | None:
    quota = _read(group / "cpu.cfs_quota_us").strip()
    period = _read(group / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def processor() -> str:
    """The name of the processor."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
