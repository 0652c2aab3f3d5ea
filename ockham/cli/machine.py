"""What this machine is and how fast: cores, memory, instruction sets, and measured limits.

The limits are what every speed is compared with: bytes read from memory and fp32 operations, each
in a second. They are measured in a process of their own, because the threads of BLAS can only be
set before it is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ockham.kernels.cores import allowed_cores, processor
from ockham.kernels.native import chosen_isa, core

__all__ = [
    "Limits",
    "allowed_cores",
    "instruction_sets",
    "measure_limits",
    "memory_bytes",
    "processor",
]

READ_BYTES = 256 << 20
"""Read in one pass: far more than any cache holds."""
MATRIX = 1536
REPEATS = 5
ARITHMETIC_S = 0.02

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
    """The best of several passes with so many threads; None where only the native core can tell."""

    threads: int
    read_bytes_per_s: float
    fp32_flops_per_s: float
    bf16_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None


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
    """Measure with `threads` threads, for a second or two."""
    if core is not None:
        return _native_limits(threads)
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    result = subprocess.run(
        [sys.executable, "-m", "ockham.cli.machine", str(threads)],
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        check=True,
        capture_output=True,
        text=True,
    )
    return Limits(threads, **json.loads(result.stdout))


def _native_limits(threads: int) -> Limits:
    """By the probes of the native core, which use the kernels' own instructions."""
    import numpy as np

    pool, isa = core.ThreadPool(threads), chosen_isa()
    memory = np.ones(READ_BYTES, np.uint8)
    rates = {
        rate: max(core.arithmetic_rate(pool, isa, rate, ARITHMETIC_S) for _ in range(REPEATS))
        for rate in (core.Rate.FP32, core.Rate.BF16, core.Rate.INT8)
    }
    return Limits(
        threads,
        max(core.read_rate(pool, isa, memory) for _ in range(REPEATS)),
        rates[core.Rate.FP32],
        rates[core.Rate.BF16],
        rates[core.Rate.INT8],
    )


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


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
