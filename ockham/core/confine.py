"""Confines this process, and becomes another one: `python confine.py CPU_S BYTES -- PROGRAM ...`.

Run as a file, without Ockham: it imports the standard library only, to start fast. CPU_S bounds the
program's processor time, BYTES its memory. It can open no socket, write no large file and leave no
core. Exit status 125: it could not be confined (the reason is on standard error), 127: the program
could not be run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

FAILED, NOT_RUN = 125, 127
_FILE_BYTES = 16 << 20
_ARCHITECTURES = {
    # audit architecture, and the numbers of socket, socketpair, io_uring_setup, setpgid and setsid
    "x86_64": (0xC000003E, 41, 53, 425, 109, 112),
    "aarch64": (0xC00000B7, 198, 199, 425, 154, 157),
}
_COMPUTING = {
    # read, write, close, fstat, lseek, mmap, mprotect, munmap, brk, rt_sigaction, rt_sigprocmask,
    # rt_sigreturn, madvise, mremap, sched_yield, nanosleep, getpid, exit, sigaltstack, gettid,
    # futex, clock_gettime, clock_nanosleep, exit_group, getrandom, gettimeofday, restart_syscall
    "x86_64": (
        *(0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 28, 25, 24, 35, 39, 60, 131, 186),
        *(202, 228, 230, 231, 318, 96, 219),
    ),
    "aarch64": (
        *(63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 233, 216, 124, 101, 172, 93, 132),
        *(178, 98, 113, 115, 94, 278, 169, 128),
    ),
}
"""The system calls of a program that computes, and reads and writes what is open already."""
_X32 = 0x40000000
"""Bit of the second set of system calls that x86-64 has."""
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""`_REFUSE`: the call fails with EPERM."""
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER, _DIE_WITH_PARENT, _SIGKILL = 38, 22, 2, 1, 9


def main() -> None:
    cpu_s, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    program = sys.argv[sys.argv.index("--") + 1 :]
    try:
        restrict()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (OSError, ValueError) as error:
        print(f"cannot be confined: {error}", file=sys.stderr)
        sys.exit(FAILED)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"cannot be run: {error}", file=sys.stderr)
        sys.exit(NOT_RUN)


def can_confine() -> bool:
    """Whether programs can be confined on a machine like this one."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES


def restrict() -> None:
    """Let this process and its children make no socket and stay in their group, so that whoever
    ends the group ends all of them; and let it end with its parent. Raises OSError."""
    architecture, *calls = _known_machine()
    checks: list[_Check] = []
    for number in calls:
        checks += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    checks.append((_RETURN, 0, 0, _ALLOW))
    _set_filter(architecture, checks)


def compute_only() -> None:
    """Let this process do nothing any more but compute, and read and write what is open already: it
    can open no file, begin no process or thread, and signal none. Raises OSError."""
    architecture, *_ = _known_machine()
    checks: list[_Check] = []
    for number in _COMPUTING[platform.machine()]:
        checks += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    checks.append((_RETURN, 0, 0, _REFUSE))
    _set_filter(architecture, checks)


_Check = tuple[int, int, int, int]
"""An instruction of a filter: its code, two jumps, and a value."""


def _known_machine() -> tuple[int, ...]:
    found = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or found is None:
        raise OSError(f"no filter of system calls for {sys.platform} on {platform.machine()}")
    return found


def _set_filter(architecture: int, checks: list[_Check]) -> None:
    """Judge the calls of this process and its children by `checks`, beside the filters that hold
    already."""
    checks = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        *checks,
    ]
    code = b"".join(struct.pack("=HBBI", *check) for check in checks)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(checks), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    given = ctypes.create_string_buffer(program, len(program))
    for arguments in (
        (_DIE_WITH_PARENT, _SIGKILL, 0, 0, 0),
        (_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_SET_SECCOMP, _FILTER, ctypes.addressof(given), 0, 0),
    ):
        if libc.prctl(*(ctypes.c_ulong(each) for each in arguments)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
