"""What a worker process does harms nobody else: its limits, its end, and its replacement."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ockham.core.errors import (
    InvalidRequest,
    LimitExceeded,
    TaskFailed,
    WorkerDied,
    WorkerUnavailable,
)
from ockham.core.worker import Worker, WorkerLimits
from tests.helpers.worker_services import NAME, Do

LIMITS = WorkerLimits(cpu_s=20.0, wall_s=60.0, memory_bytes=64 << 20, output_bytes=100_000)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker[str]]:
    made = Worker(NAME, str, limits=LIMITS)
    yield made
    made.close()


def gone(pid: int, within_s: float) -> bool:
    """Whether a process ends within so many seconds. One that nobody has reaped has ended."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_one_process_answers_many_tasks(worker: Worker[str]) -> None:
    pids = {worker.run(Do("pid")) for _ in range(5)}
    assert pids == {str(pid) for pid in worker.pids}
    assert worker.run(Do("say", 3, "äb")) == "äbäbäb"


@pytest.mark.parametrize(
    ("what", "how", "limit"),
    [
        ("spin", {"cpu_s": 0.3}, "CPU time"),
        ("backtrack", {"cpu_s": 0.3}, "CPU time"),
        ("sleep", {"wall_s": 0.3}, "wall time"),
        ("eat", {}, "memory"),
    ],
)
def test_a_task_beyond_a_limit_fails_alone_and_says_which(
    worker: Worker[str], what: str, how: dict[str, float], limit: str
) -> None:
    before = worker.run(Do("pid"))
    wrong = worker.submit(Do(what, 1000), **how)
    right = worker.submit(Do("say", 1, "still here"))
    with pytest.raises(LimitExceeded) as refused:
        wrong.result()
    assert refused.value.limit == limit
    assert right.result() == "still here"
    assert worker.run(Do("pid")) != before
    assert gone(int(before), 1.0)


def test_a_long_answer_is_refused_and_its_process_goes_on(worker: Worker[str]) -> None:
    before = worker.run(Do("pid"))
    with pytest.raises(LimitExceeded, match="100000 bytes") as refused:
        worker.run(Do("say", 200_000, "x"))
    assert refused.value.limit == "output"
    assert worker.run(Do("pid")) == before


def test_what_a_task_prints_goes_nowhere(worker: Worker[str]) -> None:
    assert worker.run(Do("print", 2000)) == "quiet"
    assert worker.run(Do("say", 1, "x")) == "x"


def test_errors_of_a_task_are_told_apart(worker: Worker[str]) -> None:
    before = worker.run(Do("pid"))
    with pytest.raises(InvalidRequest, match="so not") as refused:
        worker.run(Do("refuse", 0, "so not"))
    assert refused.value.param == "field"
    with pytest.raises(TaskFailed, match="what") as failed:
        worker.run(Do("fail", 0, "what"))
    assert failed.value.kind == "KeyError"
    with pytest.raises(InvalidRequest, match="cannot be handed"):
        worker.run(Do("say", 2**70))
    assert worker.run(Do("pid")) == before


@pytest.mark.parametrize(
    ("what", "number"), [("die", signal.SIGSEGV), ("die", signal.SIGKILL), ("exit", 3)]
)
def test_a_task_that_takes_its_process_down_fails_alone(
    worker: Worker[str], what: str, number: int
) -> None:
    with pytest.raises(WorkerDied, match="in the middle of it"):
        worker.run(Do(what, number))
    assert worker.run(Do("say", 1, "x")) == "x"


def test_a_process_that_is_killed_from_outside_is_replaced(worker: Worker[str]) -> None:
    for busy in (False, True):
        before = worker.run(Do("pid"))
        task = worker.submit(Do("sleep", 1)) if busy else None
        if busy:
            time.sleep(0.3)
        os.kill(int(before), signal.SIGKILL)
        if task is not None:
            assert task.result() == ""
        assert worker.run(Do("pid")) != before


def test_memory_that_a_task_leaves_behind_is_not_taken_from_the_next(worker: Worker[str]) -> None:
    before = worker.run(Do("pid"))
    for _ in range(6):
        assert worker.run(Do("keep", 40 << 20)) == ""
    assert worker.run(Do("pid")) != before


def test_a_worker_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCKHAM_API_KEY", "secret")
    with socket.socket() as sock, open(__file__) as file:
        for handle in (sock, file):
            os.set_inheritable(handle.fileno(), True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        fresh = Worker(NAME, str)
        try:
            assert fresh.run(Do("descriptors")) == "[][][]"
            assert fresh.run(Do("environment", 0, "OCKHAM_API_KEY")) == ""
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
            fresh.close()


def test_a_process_imports_little(worker: Worker[str]) -> None:
    loaded = set(worker.run(Do("modules")).split())
    assert "msgspec" in loaded
    assert not loaded & {"numpy", "torch", "asyncio", "starlette", "tokenizers", "ockham.engine"}


def test_owners_take_turns(worker: Worker[str]) -> None:
    order: list[str] = []
    worker.run(Do("pid"))
    tasks = [worker.submit(Do("sleep", 1))]
    for owner, name in [("a", f"a{i}") for i in range(6)] + [("b", "b0"), ("c", "c0")]:
        tasks.append(worker.submit(Do("say", 1, name), owner=owner))
        tasks[-1].add_done_callback(lambda done: order.append(done.result()))
    for task in tasks:
        task.result()
    assert order[:3] == ["a0", "b0", "c0"]
    assert order[3:] == [f"a{i}" for i in range(1, 6)]


def test_a_task_that_nobody_waits_for_is_not_begun(worker: Worker[str]) -> None:
    first = worker.submit(Do("sleep", 1))
    given_up = worker.submit(Do("spin"))
    assert given_up.cancel()
    assert first.result() == ""
    assert worker.run(Do("say", 1, "x"), wall_s=10.0) == "x"


def test_several_processes_work_at_once() -> None:
    pair = Worker(NAME, str, processes=2)
    slow = pair.submit(Do("sleep", 30))
    assert pair.run(Do("say", 1, "x")) == "x"
    assert len(pair.pids) == 2
    pair.close()
    with pytest.raises(WorkerDied, match="closed"):
        slow.result()


def test_an_event_loop_goes_on_meanwhile(worker: Worker[str]) -> None:
    async def work() -> tuple[int, str]:
        ticks = 0
        task = asyncio.ensure_future(worker.run_async(Do("sleep", 1)))
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, await task

    ticks, answer = asyncio.run(work())
    assert answer == ""
    assert ticks > 10


def test_a_setup_is_read_once_and_may_be_refused() -> None:
    made: list[int] = []

    def setup() -> str:
        made.append(threading.get_ident())
        return "hello"

    with_setup = Worker(NAME, str, setup=setup)
    with_setup.start()
    with_setup.start()
    assert with_setup.run(Do("greeting")) == "hello"
    os.kill(with_setup.pids[0], signal.SIGKILL)
    assert with_setup.run(Do("greeting")) == "hello"
    assert len(made) == 1
    assert made != [threading.get_ident()]
    with_setup.close()
    wrong = Worker(NAME, str, setup="no")
    with pytest.raises(InvalidRequest, match="not with this setup"):
        wrong.run(Do("greeting"))
    wrong.close()


def test_a_service_that_is_not_there_is_said() -> None:
    nothing = Worker("ockham.core.errors:nothing", str)
    with pytest.raises(TaskFailed, match="nothing"):
        nothing.run(Do("say"))
    nothing.close()


def test_a_process_that_does_not_start_in_time_is_said() -> None:
    late = Worker(NAME, str, limits=WorkerLimits(start_s=1e-4))
    with pytest.raises(WorkerUnavailable, match="try again later"):
        late.run(Do("say"))
    late.close()


def test_a_closed_worker_leaves_no_process_and_one_forgotten_neither() -> None:
    closed, forgotten = Worker(NAME, str), Worker(NAME, str)
    pids = [int(each.run(Do("pid"))) for each in (closed, forgotten)]
    closed.close()
    del forgotten
    assert all(gone(pid, 5.0) for pid in pids)


PARENT = """
import sys, threading, time
from ockham.core.worker import Worker, WorkerLimits
from tests.helpers.worker_services import NAME, Do
worker = Worker(NAME, str, limits=WorkerLimits(cpu_s=1000.0, wall_s=1000.0))
# From a thread that has ended: Linux ends a child with the thread that started it.
thread = threading.Thread(target=worker.run, args=[Do("pid")])
thread.start()
thread.join()
time.sleep(0.2)
pid = worker.run(Do("pid"))
if sys.argv[1] == "busy":
    worker.submit(Do("spin"))
print(pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a busy worker ends by its limits")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_worker_ends_with_its_parent_whatever_ends_it(state: str) -> None:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if state == "busy":
            until_s = time.monotonic() + 20
            process = psutil.Process(pid)
            began_s = sum(process.cpu_times()[:2])
            while sum(process.cpu_times()[:2]) < began_s + 0.2:
                assert time.monotonic() < until_s
                time.sleep(0.05)
        parent.kill()
        parent.wait()
        assert gone(pid, 1.0)
