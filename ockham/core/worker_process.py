"""The child's side of a worker process: `python -m ockham.core.worker_process PARENT SERVICE`.

PARENT is the process id of the parent, SERVICE is "module:name" of a `Service`. Frames of msgpack
arrive on standard input and leave on standard output: first the service's setup, then tasks, each
answered by a `Reply`. Both pipes are moved elsewhere before any work is done, so that what the work
prints goes nowhere. The process ends with its standard input, and with its parent.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec

from ockham.core.errors import InvalidRequest, OckhamError
from ockham.core.parent import die_with_parent

LENGTH = struct.Struct("<I")
GROWN = 0.5
"""Share of a task's memory that may stay in use after it; else the process is replaced."""
_MOST_REASON = 2000
"""Characters of an error that are sent."""

S = TypeVar("S")
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Service(Generic[S, Q, A]):
    """What a worker process does. It stands in a module that imports only what the work needs.

    `begin` is called once with the setup, of the type `setup`, and returns what answers a question
    of the type `question`. All three must be types that msgspec encodes.
    """

    setup: type[S]
    question: type[Q]
    begin: Callable[[S], Callable[[Q], A]]


class Start(msgspec.Struct, array_like=True):
    """The first frame: the setup, and how many bytes a task may use above what the setup left."""

    setup: msgspec.Raw
    memory_bytes: int


class Task(msgspec.Struct, array_like=True):
    question: msgspec.Raw
    cpu_s: float
    output_bytes: int


class Reply(msgspec.Struct, array_like=True):
    """An answer, or why there is none: `kind` is "memory", "output", or the name of an error.

    `grown` says that the process keeps too much memory and should be replaced."""

    answer: bytes = b""
    kind: str = ""
    message: str = ""
    param: str | None = None
    refused: bool = False
    """Whether the error is an InvalidRequest."""
    grown: bool = False


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    source, sink = _take_pipes()
    for number in (signal.SIGPROF, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    service, answer, most_bytes = None, None, 0
    try:
        start = msgspec.msgpack.decode(_read(source), type=Start)
        service = _find(sys.argv[2])
        answer = service.begin(msgspec.msgpack.decode(start.setup, type=service.setup))
        most_bytes = start.memory_bytes
        limit = _data_bytes() + most_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except Exception as error:
        _write(sink, _failure(error))
        return
    began_bytes = _data_bytes()
    _write(sink, Reply())
    while body := _read(source):
        task = msgspec.msgpack.decode(body, type=Task)
        reply = _answer(service, answer, task)
        reply.grown = reply.kind == "memory" or (_data_bytes() - began_bytes > GROWN * most_bytes)
        _write(sink, reply)


def _answer(service: Service[Any, Any, Any], answer: Callable[[Any], Any], task: Task) -> Reply:
    # The default action of the timer's signal ends this process, in C code too.
    signal.setitimer(signal.ITIMER_PROF, task.cpu_s)
    try:
        found = answer(msgspec.msgpack.decode(task.question, type=service.question))
        body = msgspec.msgpack.encode(found)
    except Exception as error:
        return _failure(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(body) > task.output_bytes:
        return Reply(kind="output", message=f"the answer has {len(body)} bytes")
    return Reply(answer=body)


def _failure(error: Exception) -> Reply:
    if isinstance(error, MemoryError) and not isinstance(error, OckhamError):
        return Reply(kind="memory", message="MemoryError")
    return Reply(
        kind=type(error).__name__,
        message=str(error)[:_MOST_REASON],
        param=getattr(error, "param", None) if isinstance(error, InvalidRequest) else None,
        refused=isinstance(error, InvalidRequest),
    )


def _find(name: str) -> Service[Any, Any, Any]:
    module, _, attribute = name.partition(":")
    found: Service[Any, Any, Any] = getattr(importlib.import_module(module), attribute)
    return found


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent, under numbers of their own; the standard ones lead nowhere."""
    pipes = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb")


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmData:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return math.ceil(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _read(source: BinaryIO) -> bytes:
    head = source.read(LENGTH.size)
    return source.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def _write(sink: BinaryIO, reply: Reply) -> None:
    body = msgspec.msgpack.encode(reply)
    sink.write(LENGTH.pack(len(body)) + body)
    sink.flush()


if __name__ == "__main__":
    main()
