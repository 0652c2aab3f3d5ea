"""Pages of a file in the place of memory that was allocated: no byte is copied, none is waited for.

Reading a gigabyte into fresh memory costs what zeroing and copying it cost, and on virtual machines
that give unused memory back, several times that; mapping costs nothing. Kernels, though, read small
pages of a file more slowly than huge pages of memory. So a file is mapped first, and `settle` moves
it into huge pages later, behind the backs of those who read it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.kernels.memory import HUGE_PAGE_BYTES

MOVED_BYTES = 32 << 20
"""Bytes that `settle` moves at a time: so much memory is taken twice."""

_MAP_FIXED = 0x10
_MREMAP_MAYMOVE_FIXED = 3
_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _libc() -> Any:
    """The C library, or None where the system calls differ from those used here."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_long]
    libc.mmap.restype = pointer
    libc.mremap.argtypes = [pointer, size, size, integer, pointer]
    libc.mremap.restype = pointer
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, integer]
    return libc


def map_over(memory: npt.NDArray[np.uint8], descriptor: int, offset: int) -> bool:
    """Show the bytes of an open file from `offset` on in `memory`, which `kernels.memory.allocate`
    gave. False, with nothing changed, if that cannot be done: less than a huge page of memory, an
    offset that is no multiple of a page, a system or a file that does not map.

    What is written to the memory stays private. Someone who cuts the file short while it is mapped
    kills the process; who writes to it may change what is seen.
    """
    address, libc = memory.ctypes.data, _libc()
    if libc is None or len(memory) < HUGE_PAGE_BYTES or address % HUGE_PAGE_BYTES:
        return False
    if offset % mmap.PAGESIZE:
        return False
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    mapped = libc.mmap(address, len(memory), protection, flags, descriptor, offset)
    return bool(mapped == address)


def settle(memory: npt.NDArray[np.uint8], start: int) -> int:
    """Move the mapped bytes from `start` on, a multiple of MOVED_BYTES, into huge pages.

    Gives the bytes that were moved, at most MOVED_BYTES; 0 if it could not be done. Others may read
    the memory meanwhile: a page shows the same bytes before and after.
    """
    libc, size = _libc(), min(MOVED_BYTES, len(memory) - start)
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    target = memory.ctypes.data + start
    fresh = _huge_pages(libc, length)
    if fresh is None:
        return 0
    ctypes.memmove(fresh, target, size)
    if libc.mremap(fresh, length, length, _MREMAP_MAYMOVE_FIXED, target) != target:
        libc.munmap(fresh, length)
        return 0
    return size


def _huge_pages(libc: Any, length: int) -> int | None:
    """The address of fresh memory that starts at a huge page, and of which nothing is left over."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    raw = libc.mmap(None, length + HUGE_PAGE_BYTES, protection, flags, -1, 0)
    if raw is None or raw == _FAILED:
        return None
    start = -(-raw // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    end = start + length
    if start > raw:
        libc.munmap(raw, start - raw)
    if raw + length + HUGE_PAGE_BYTES > end:
        libc.munmap(end, raw + length + HUGE_PAGE_BYTES - end)
    libc.madvise(start, length, mmap.MADV_HUGEPAGE)
    return int(start)
