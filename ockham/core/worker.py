"""Work in child processes that may be killed: untrusted input, or a library that may hang or crash.

The parent's side. What a child does is a `Service` (`ockham.core.worker_process`). A task that
exceeds a limit or crashes fails alone, with a typed error; its process is replaced.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import msgspec

from ockham.core.errors import (
    InvalidRequest,
    LimitExceeded,
    OckhamError,
    TaskFailed,
    WorkerDied,
    WorkerUnavailable,
)
from ockham.core.worker_process import LENGTH, Reply, Start, Task

_ENVELOPE_BYTES = 16384
"""What a reply may hold beside its answer."""
_END_S = 2.0
"""What a process that closed its pipe may take to end by itself."""
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the environment, beside LC_* and PYTHON*: a worker is given no keys of the parent."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one task may use. `memory_bytes` counts above what the setup left; `cpu_s` is of all the
    process's threads; `wall_s` begins when the task is handed over, not while it waits."""

    cpu_s: float = 5.0
    wall_s: float = 30.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 4 << 20
    start_s: float = 60.0
    """Wall time that a process may take to start and to read its setup."""


class Worker(Generic[A]):
    """One or several child processes that do the work of one service. Safe to use from threads.

    A process is started with the first task that finds none free, or by `start`. Tasks wait in
    turns: those of one `owner` in their order, owners one after the other. Each process has a
    thread here which starts it, feeds it and kills it (Linux ends a child with the *thread* that
    started it). `close` kills the processes; it is called when the worker is no more used.

    A task raises InvalidRequest if the service did, LimitExceeded with the limit, TaskFailed for
    any other error of the service, WorkerDied or WorkerUnavailable.
    """

    def __init__(
        self,
        service: str,
        answer: type[A],
        *,
        setup: Any | Callable[[], Any] = None,
        limits: WorkerLimits | None = None,
        processes: int = 1,
    ) -> None:
        """`service` is "module:name" of a Service, `answer` the type of its answers. `setup`, if it
        is callable, is called in a thread when the first process is started."""
        self._service = service
        self._answer = answer
        self._setup = setup
        self.limits = limits or WorkerLimits()
        self._processes = processes
        self._lock = threading.Lock()
        self._pool: _Pool | None = None

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        pool = self._pool
        return [] if pool is None else [p.pid for p in list(pool.running)]

    def start(self) -> None:
        """Start all processes now, without waiting for them."""
        pool = self._here()
        for _ in range(self._processes):
            pool.add_thread()

    def submit(
        self,
        question: Any,
        *,
        owner: str = "",
        cpu_s: float | None = None,
        wall_s: float | None = None,
    ) -> Future[A]:
        """Hand over a task. A future that is cancelled before its turn costs nothing. Raises
        InvalidRequest if the question cannot be written as a message."""
        try:
            body = msgspec.msgpack.encode(question)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"this cannot be handed to a worker process ({error}).") from None
        limits = self.limits
        task = Task(
            msgspec.Raw(body),
            limits.cpu_s if cpu_s is None else cpu_s,
            limits.output_bytes,
        )
        waiting = _Waiting(task, limits.wall_s if wall_s is None else wall_s, Future())
        self._here().put(owner, waiting)
        future: Future[A] = waiting.future
        return future

    def run(self, question: Any, **how: Any) -> A:
        """`submit` and wait, in a thread."""
        return self.submit(question, **how).result()

    async def run_async(self, question: Any, **how: Any) -> A:
        """`submit` and wait, in an event loop, which goes on meanwhile."""
        import asyncio  # 20 ms, with ssl; who awaits this has it

        return await asyncio.wrap_future(self.submit(question, **how))

    def close(self) -> None:
        """Kill the processes. Tasks that wait fail with WorkerDied; later ones start anew."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _here(self) -> _Pool:
        """The processes of this process: a fork of it has none of its threads."""
        with self._lock:
            if self._pool is None or self._pool.owner != os.getpid():
                self._pool = _Pool(
                    self._service, self._answer, self._setup, self.limits, self._processes
                )
                weakref.finalize(self, self._pool.close)
            return self._pool


@dataclass(slots=True)
class _Waiting:
    task: Task
    wall_s: float
    future: Future[Any]


class _Pool:
    """The threads and processes of a worker, and the tasks that wait for them."""

    def __init__(
        self,
        service: str,
        answer: type[Any],
        setup: Any | Callable[[], Any],
        limits: WorkerLimits,
        most: int,
    ) -> None:
        self.owner = os.getpid()
        self.service, self.answer, self.limits = service, answer, limits
        self.running: set[subprocess.Popen[bytes]] = set()
        self.closed = False
        self._setup = setup
        self._most = most
        self._threads = 0
        self._free = 0
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._changed = threading.Condition()
        self._setup_lock = threading.Lock()
        self._setup_body: bytes | None = None

    def put(self, owner: str, waiting: _Waiting) -> None:
        with self._changed:
            if self.closed:
                raise WorkerDied("the worker process was closed.")
            self._waiting.setdefault(owner, deque()).append(waiting)
            if self._free < sum(map(len, self._waiting.values())):
                self._add_thread()
            self._changed.notify()

    def add_thread(self) -> None:
        with self._changed:
            self._add_thread()

    def _add_thread(self) -> None:
        if self._threads < self._most:
            self._threads += 1
            thread = threading.Thread(target=_drive, args=(self,), name="ockham-worker")
            thread.daemon = True
            thread.start()

    def take(self) -> _Waiting | None:
        """The next task, when there is one; None when the worker is closed."""
        with self._changed:
            self._free += 1
            try:
                while not self.closed:
                    if self._waiting:
                        owner, queue = next(iter(self._waiting.items()))
                        found = queue.popleft()
                        if queue:
                            self._waiting.move_to_end(owner)
                        else:
                            del self._waiting[owner]
                        return found
                    self._changed.wait()
                return None
            finally:
                self._free -= 1

    def setup(self) -> bytes:
        """The first frame of every process. Raises what the maker of the setup raises."""
        with self._setup_lock:
            if self._setup_body is None:
                setup = self._setup() if callable(self._setup) else self._setup
                start = Start(msgspec.Raw(msgspec.msgpack.encode(setup)), self.limits.memory_bytes)
                self._setup_body = msgspec.msgpack.encode(start)
                self._setup = None  # whose maker may hold what holds the worker
            return self._setup_body

    def close(self) -> None:
        if self.owner != os.getpid():  # a fork: threads and processes are the parent's
            return
        with self._changed:
            self.closed = True
            left = [each for queue in self._waiting.values() for each in queue]
            self._waiting.clear()
            self._changed.notify_all()
        for process in list(self.running):
            process.kill()
        for each in left:
            if each.future.set_running_or_notify_cancel():
                each.future.set_exception(WorkerDied("the worker process was closed."))


def _drive(pool: _Pool) -> None:
    """What a thread does for its process, until the worker is closed."""
    child = _Child(pool)
    try:
        _try_to_start(child)
        while (waiting := pool.take()) is not None:
            if not waiting.future.set_running_or_notify_cancel():
                continue
            try:
                found = child.work(waiting)
            except BaseException as error:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(found)
            del waiting
            _try_to_start(child)  # in place of one that was killed, before the next task needs it
    finally:
        child.kill()


def _try_to_start(child: _Child) -> None:
    try:
        child.start()
    except Exception:  # the next task tries again, and says it
        child.kill()


class _Child:
    """One child process, started anew when it is gone. Used by one thread."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None

    def work(self, waiting: _Waiting) -> Any:
        """The answer to a task."""
        for last in (False, True):
            self.start()
            try:
                reply = self._ask(msgspec.msgpack.encode(waiting.task), waiting.wall_s)
            except TimeoutError:
                self.kill()
                raise LimitExceeded(
                    f"it took longer than {waiting.wall_s:g} s.", "wall time"
                ) from None
            except OverflowError:
                self.kill()
                raise self._too_much_output() from None
            except (OSError, EOFError):
                code = self._ended()
                self.kill()
                # Whoever kills it from outside means the process; a second time it is the task.
                if code == -signal.SIGKILL and not last and not self._pool.closed:
                    continue
                raise self._death(code, waiting) from None
            return self._result(reply)
        raise AssertionError("the second time returns or raises")

    def start(self) -> None:
        """See that there is a process that waits for a task."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        body = self._pool.setup()
        self._process = process = self._spawn()
        self._pool.running.add(process)
        if self._pool.closed:
            self.kill()
            raise WorkerDied("the worker process was closed.")
        try:
            reply = self._ask(body, self._pool.limits.start_s)
        except (OSError, EOFError, OverflowError):  # TimeoutError is an OSError
            self.kill()
            raise WorkerUnavailable(
                "a worker process cannot be started now; try again later."
            ) from None
        if reply.kind:
            self.kill()
            raise self._error(reply)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._pool.running.discard(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or name.startswith(("LC_", "PYTHON"))
        }
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, sys.path)])
        # A thread pool beside the work would only take memory.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment[name] = "1"
        command = [sys.executable, "-P", "-m", "ockham.core.worker_process"]
        try:
            process = subprocess.Popen(
                [*command, str(os.getpid()), self._pool.service],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            raise WorkerUnavailable(
                f"a worker process cannot be started now ({error}); try again later."
            ) from None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "asked for"
            os.set_blocking(pipe.fileno(), False)
        return process

    def _ask(self, body: bytes, wall_s: float) -> Reply:
        """Raises TimeoutError, OverflowError for an answer that is too long, or OSError or EOFError
        if the process is gone."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        until_s = time.monotonic() + wall_s
        _send(process.stdin, LENGTH.pack(len(body)) + body, until_s)
        (length,) = LENGTH.unpack(_receive(process.stdout, LENGTH.size, until_s))
        if length > self._pool.limits.output_bytes + _ENVELOPE_BYTES:
            raise OverflowError
        return msgspec.msgpack.decode(_receive(process.stdout, length, until_s), type=Reply)

    def _result(self, reply: Reply) -> Any:
        if reply.grown:
            self.kill()
        if reply.kind:
            raise self._error(reply)
        return msgspec.msgpack.decode(reply.answer, type=self._pool.answer)

    def _error(self, reply: Reply) -> OckhamError:
        if reply.refused:
            return InvalidRequest(reply.message, reply.param)
        if reply.kind == "memory":
            return self._too_much_memory()
        if reply.kind == "output":
            return self._too_much_output()
        return TaskFailed(reply.message or reply.kind, reply.kind)

    def _death(self, code: int | None, waiting: _Waiting) -> OckhamError:
        if code == -signal.SIGPROF:
            return LimitExceeded(
                f"it took more than {waiting.task.cpu_s:g} s of CPU time.", "CPU time"
            )
        if code == -signal.SIGABRT:  # how libraries end that are refused memory
            return self._too_much_memory()
        if self._pool.closed:
            return WorkerDied("the worker process was closed.")
        how = "ended" if code is None or code >= 0 else f"was ended by {_signal_name(-code)}"
        return WorkerDied(f"the worker process {how} in the middle of it.")

    def _too_much_memory(self) -> LimitExceeded:
        most = self._pool.limits.memory_bytes >> 20
        return LimitExceeded(f"it needed more than {most} MiB of memory.", "memory")

    def _too_much_output(self) -> LimitExceeded:
        most = self._pool.limits.output_bytes
        return LimitExceeded(f"its result has more than {most} bytes.", "output")

    def _ended(self) -> int | None:
        """The exit status of a process whose pipe has ended; None if it does not end."""
        assert self._process is not None
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _wait(pipe: IO[bytes], event: int, until_s: float) -> None:
    left_s = until_s - time.monotonic()
    poll = select.poll()  # select() takes no number from 1,024 on
    poll.register(pipe, event)
    if left_s <= 0 or not poll.poll(left_s * 1000.0):
        raise TimeoutError


def _send(pipe: IO[bytes], data: bytes, until_s: float) -> None:
    rest = memoryview(data)
    while rest:
        _wait(pipe, select.POLLOUT, until_s)
        try:
            rest = rest[os.write(pipe.fileno(), rest) :]
        except BlockingIOError:
            continue


def _receive(pipe: IO[bytes], count: int, until_s: float) -> bytes:
    found = bytearray()
    while len(found) < count:
        _wait(pipe, select.POLLIN, until_s)
        new = os.read(pipe.fileno(), min(count - len(found), 1 << 20))
        if not new:
            raise EOFError
        found += new
    return bytes(found)
