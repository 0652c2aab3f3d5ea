"""Programs of a user's that are run with limits on time, memory and output, without a network."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from ockham.core import confine
from ockham.core.errors import ConfigError, LimitExceeded, TaskFailed

_CHILD = Path(confine.__file__)
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the environment: a program is given no keys of this process."""
_LOOK_S = 0.1
_SAID = 500
"""Characters that an error repeats of what a program said."""


@dataclass(frozen=True, slots=True)
class ConfinedLimits:
    """What one run of a program may use."""

    cpu_s: int = 10
    wall_s: float = 20.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 16


class Confined:
    """Runs a program, `command`, once for each input, at most `at_once` at the same time.

    The program reads the input from standard input; what it prints is the answer. It can open no
    socket. A run that exceeds a limit is killed, with all processes that it began, and so is what
    still runs when this process ends. Raises
    ConfigError where programs cannot be confined, or there is no such program.
    """

    def __init__(
        self, command: list[str], limits: ConfinedLimits | None = None, at_once: int = 2
    ) -> None:
        if not confine.can_confine():
            raise ConfigError(
                f"{command[0]!r} cannot be run without a network on this kind of machine; programs "
                "are confined on Linux, on x86-64 and ARM of 64 bits."
            )
        if not _exists(command[0]):
            raise ConfigError(f"there is no program {command[0]!r} that can be run.")
        self._command, self._limits = command, limits or ConfinedLimits()
        self._waiting: queue.SimpleQueue[tuple[bytes, Future[bytes]] | None]
        self._waiting = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[Future[bytes], subprocess.Popen[bytes] | None] = {}
        """None of one that was given up."""
        self._closed = False
        self._at_once, self._threads = at_once, 0

    def submit(self, given: bytes) -> Future[bytes]:
        """Hand over an input. The future raises LimitExceeded with the limit, or TaskFailed with
        what a program said that ended in any other way than with status 0."""
        found: Future[bytes] = Future()
        with self._lock:
            if self._threads < self._at_once:
                self._threads += 1
                # No executor, whose threads the interpreter waits for when it ends.
                threading.Thread(target=self._work, name="ockham-confined", daemon=True).start()
        self._waiting.put((given, found))
        return found

    def abandon(self, future: Future[bytes]) -> None:
        """Nobody waits for this any more: it is not run, or killed."""
        if future.cancel():
            return
        with self._lock:
            process = self._running.get(future)
            if process is not None:
                _kill(process)
            elif not future.done():
                self._running[future] = None

    def close(self) -> None:
        """Kill what runs. What waits is not run."""
        with self._lock:
            self._closed = True
            running = list(self._running)
            threads = self._threads
        for future in running:
            self.abandon(future)
        for _ in range(threads):
            self._waiting.put(None)

    def _work(self) -> None:
        """What a thread does: one run after the other."""
        while (task := self._waiting.get()) is not None:
            given, future = task
            if self._closed:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._run(given, future))
            except BaseException as error:
                future.set_exception(error)

    def _run(self, given: bytes, future: Future[bytes]) -> bytes:
        limits = self._limits
        confined = [str(_CHILD), str(limits.cpu_s), str(limits.memory_bytes), "--", *self._command]
        with subprocess.Popen(
            [sys.executable, "-I", "-S", *confined],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            start_new_session=True,
        ) as process:
            with self._lock:
                given_up = self._closed or future in self._running
                self._running[future] = process
                if given_up:
                    _kill(process)
            try:
                return self._talk(process, given)
            finally:
                _kill(process)
                with self._lock:
                    del self._running[future]

    def _talk(self, process: subprocess.Popen[bytes], given: bytes) -> bytes:
        limits, name = self._limits, self._command[0]
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        out, error, into = process.stdout.fileno(), process.stderr.fileno(), process.stdin
        os.set_blocking(into.fileno(), False)
        said = {out: bytearray(), error: bytearray()}
        left, until_s = memoryview(given), time.monotonic() + limits.wall_s
        writing = [into.fileno()]
        reading = [out, error]
        while reading:
            if time.monotonic() > until_s:
                raise _late(name, limits)
            over = process.poll() is not None  # looked at first: all that it said is there then
            ready, writable, _ = select.select(reading, writing, (), 0.0 if over else _LOOK_S)
            if not ready and over:
                break  # what it began may hold its output open, and is ended with it
            if writable:
                try:
                    left = left[os.write(into.fileno(), left) :]
                except BrokenPipeError:  # it does not read what it is given
                    left = left[:0]
                if not left:
                    writing = []
                    into.close()
            for each in ready:
                piece = os.read(each, 1 << 16)
                said[each] += piece
                if not piece:
                    reading.remove(each)
                elif len(said[each]) > limits.output_bytes:
                    most = limits.output_bytes
                    raise LimitExceeded(f"{name} printed more than {most} bytes.", "output")
        try:
            status = process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _late(name, limits) from None
        if status == -signal.SIGXCPU:
            used = f"{name} took longer than {limits.cpu_s} s of processor time."
            raise LimitExceeded(used, "CPU time")
        if status != 0:
            told = said[error][-_SAID:].decode(errors="replace").strip()
            ended = f"signal {-status}" if status < 0 else f"status {status}"
            raise TaskFailed(f"{name} ended with {ended}" + (f": {told}" if told else "."), ended)
        return bytes(said[out])


def _late(name: str, limits: ConfinedLimits) -> LimitExceeded:
    return LimitExceeded(f"{name} took longer than {limits.wall_s:g} s.", "wall time")


def _exists(program: str) -> bool:
    """Whether a program of this name, or at this path, could be run."""
    places = [Path(program)]
    if os.sep not in program:
        places = [Path(each) / program for each in os.environ.get("PATH", "").split(os.pathsep)]
    return any(place.is_file() and os.access(place, os.X_OK) for place in places)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all processes of its session's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
