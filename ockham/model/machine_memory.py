"""How much memory this process may still take: what its control groups and the machine allow."""

from __future__ import annotations

import resource
from pathlib import Path

_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number just below 2^63."""


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that may be allocated without being killed or swapping.

    The least of the machine's MemAvailable, of what is left of this process's address space and
    data (ulimit -v and -d), and, for every control group (v2 and v1) from the process's own up to
    the root, of the limit minus what is in use there. Page cache that can be
    dropped does not count as in use. `root` stands for / in tests.
    """
    amounts = [_machine(root), *_process(root), *_groups_v2(root), *_groups_v1(root)]
    return max(0, min(amounts))


def _machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNLIMITED


def _process(root: Path) -> list[int]:
    """What is left of the limits of this process, of those that are set."""
    used = {
        line.partition(":")[0]: int(line.split()[1]) * 1024
        for line in _read(root / "proc/self/status").splitlines()
        if line.startswith(("VmSize:", "VmData:"))
    }
    return [
        limit - used.get(name, 0)
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY
    ]


def _groups_v2(root: Path) -> list[int]:
    return [
        _left(directory, "memory.max", "memory.current", ("active_file", "inactive_file"))
        for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        for directory in _upwards(root / mount, _own_group(root, ""))
    ]


def _groups_v1(root: Path) -> list[int]:
    mount = root / "sys/fs/cgroup/memory"
    cache = ("total_active_file", "total_inactive_file")
    return [
        _left(directory, "memory.limit_in_bytes", "memory.usage_in_bytes", cache)
        for directory in _upwards(mount, _own_group(root, "memory"))
    ]


def _own_group(root: Path, controller: str) -> str:
    """The path of the process's group in the hierarchy of a v1 controller, or of v2 ("")."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or not controllers):
            return path.strip("/")
    return ""


def _upwards(mount: Path, path: str) -> list[Path]:
    """A group's directory and those of its parents, as far as they can be seen from here."""
    own = mount / path
    return [directory for directory in (own, *own.parents) if directory.is_relative_to(mount)]


def _left(directory: Path, limit: str, usage: str, cache: tuple[str, ...]) -> int:
    limit_text, usage_text = _read(directory / limit).strip(), _read(directory / usage).strip()
    if not limit_text.isdigit() or not usage_text.isdigit() or int(limit_text) >= _UNLIMITED:
        return _UNLIMITED
    stat = dict(
        line.split(maxsplit=1)
        for line in _read(directory / "memory.stat").splitlines()
        if " " in line
    )
    droppable = sum(int(stat.get(key, 0)) for key in cache)
    return int(limit_text) - max(0, int(usage_text) - droppable)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
