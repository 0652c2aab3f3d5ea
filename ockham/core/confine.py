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
    found = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or found is None:
        raise OSError(f"no filter of system calls for {sys.platform} on {platform.machine()}")
    architecture, *calls = found
    checks: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number in calls:
        checks += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    checks.append((_RETURN, 0, 0, _ALLOW))
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
