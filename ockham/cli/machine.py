"""What this machine is and how fast: cores, memory, instruction sets, and measured limits.

The limits are what every speed is compared with: bytes read from memory and fp32 operations, each
in a second. They are measured in a process of their own, because the threads of BLAS can only be
set before it is loaded.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 256 << 20
"""Read in one pass: far more than any cache holds."""
MATRIX = 1536
REPEATS = 5

_INSTRUCTION_SETS = (
    "sse4_2",
    "avx",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The best of several passes with so many threads."""

    threads: int
    read_bytes_per_s: float
    fp32_flops_per_s: float


def allowed_cores() -> int:
    """Cores that this process may use: its affinity, cut down by the quotas of its cgroups."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def processor() -> str:
    """The name of the processor."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Vector instruction sets that the processor has, of those that matter for kernels."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return [name for name in _INSTRUCTION_SETS if name in flags]
    return []


def memory_bytes() -> int:
    """The machine's memory, whatever this process may use of it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        import psutil

        total: int = psutil.virtual_memory().total
        return total


def measure_limits(threads: int) -> Limits:
    """Measure with `threads` threads, in a fresh process; about two seconds."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    result = subprocess.run(
        [sys.executable, "-m", "ockham.cli.machine", str(threads)],
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        check=True,
        capture_output=True,
        text=True,
    )
    return Limits(threads, **json.loads(result.stdout))


def _measure(threads: int) -> dict[str, float]:
    """In the fresh process: the figures of `Limits`."""
    import numpy as np

    # Both NumPy's reductions and BLAS release the GIL. A maximum reads as fast as memory gives.
    parts = [np.ones(READ_BYTES // threads // 4, np.float32) for _ in range(threads)]
    read_s = _best(lambda: _in_threads([part.max for part in parts]))
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    product = np.empty_like(matrix)
    flops_s = _best(lambda: np.matmul(matrix, matrix, out=product))
    return {
        "read_bytes_per_s": sum(part.nbytes for part in parts) / read_s,
        "fp32_flops_per_s": 2 * MATRIX**3 / flops_s,
    }


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls: the others were disturbed."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _in_threads(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
