"""The engine's process and its client: what is asked is answered, whatever dies or dawdles."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import EngineDead, InvalidRequest, ModelError
from ockham.core.sampling_params import SamplingParams
from ockham.engine.channel import HEADER, frame
from ockham.engine.client import EngineClient
from ockham.engine.messages import Delta, Request
from ockham.engine.stream import Stream
from tests.helpers.clocks import Clock
from tests.helpers.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_llama(directory, max_position_embeddings=8192)


def config(checkpoint: Path, **settings) -> EngineConfig:
    return EngineConfig(
        **{
            "model": str(checkpoint),
            "skip_tokenizer_init": True,
            "kv_cache_memory_bytes": 16 << 20,
            **settings,
        }
    )


@contextlib.asynccontextmanager
async def started(checkpoint: Path, **settings) -> AsyncIterator[EngineClient]:
    client = EngineClient(config(checkpoint), **settings)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def run(work: Callable[[], Awaitable[None]], timeout_s: float = 60.0) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(timeout_s):
            await work()

    asyncio.run(bounded())


def ask(name: str, tokens: list[int] | None = None, **params) -> Request:
    params = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True, **params}
    return Request(
        request_id=name, prompt_token_ids=tokens or [5, 6, 7], params=SamplingParams(**params)
    )


async def read_all(stream: Stream) -> list[Delta]:
    deltas: list[Delta] = []
    while not any(delta.finished for delta in deltas):
        deltas += await stream.read()
    return deltas


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_engine_says_what_it_has_loaded(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            assert client.ready is not None
            assert client.ready.max_model_len == 8192
            assert client.ready.vocab_size == 97
            assert client.ready.memory_plan["weights_bytes"] > 0

    run(work)


def test_a_request_is_answered_to_its_end(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            deltas = await read_all(client.submit(ask("a")))
            assert sum(len(delta.token_ids) for delta in deltas) == 20
            assert deltas[-1].ledger is not None

    run(work)


def test_a_refused_request_leaves_the_others_alone(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            good = client.submit(ask("good"))
            bad = client.submit(ask("bad", [99999]))
            with pytest.raises(InvalidRequest, match="99999"):
                await bad.read()
            assert await read_all(good)

    run(work)


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": 5},
        {"cache_salt": "half a pair: \ud83d"},
        {"prompt_token_ids": [2**64]},
        {"prompt_token_ids": ["x"]},
        {"prompt_token_ids": [5.5]},
        {"score_from": 10**400},
        {"cache_hint": "perhaps"},
        {"detokenize": None},
        {"patient": "no"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_engine_could_not_read_is_refused_before_it_is_sent(checkpoint, fields):
    async def work():
        async with started(checkpoint, stall_s=0.2) as client:
            pid = client.pid
            request = msgspec.structs.replace(ask("bad"), **fields)
            with pytest.raises(InvalidRequest, match="cannot be sent to the engine"):
                client.submit(request)
            assert client.requests == 0
            assert await read_all(client.submit(ask("bad")))
            await asyncio.sleep(0.3)
            assert client.healthy()
            assert client.pid == pid

    run(work)


def test_an_aborted_request_gives_its_pages_back(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            await client.submit(ask("a", max_tokens=8000)).read()
            client.abort("a")
            await until(lambda: client.stats.steps > 0 and not client.stats.running)
            assert client.stats.pages_used == 0

    run(work)


def test_a_cancelled_request_says_so(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            stream = client.submit(ask("a", max_tokens=8000, n=2))
            await stream.read()
            client.cancel("a")
            deltas = await read_all(stream)
            assert {delta.finish_reason for delta in deltas if delta.finish_reason} == {"abort"}

    run(work)


def test_an_id_in_use_is_refused(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            client.submit(ask("a", max_tokens=8000))
            with pytest.raises(InvalidRequest, match="in use"):
                client.submit(ask("a"))

    run(work)


def test_a_killed_engine_fails_its_requests_and_is_replaced(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            stream = client.submit(ask("a", max_tokens=8000))
            await stream.read()
            first = client.pid
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EngineDead, match="SIGKILL"):
                await read_all(stream)
            await until(client.healthy)
            assert client.pid != first
            assert await read_all(client.submit(ask("b")))

    run(work)


def test_an_engine_that_is_away_takes_no_requests(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: not client.healthy())
            with pytest.raises(EngineDead):
                client.submit(ask("a"))

    run(work)


def test_a_stopped_engine_is_stuck_only_while_work_waits(checkpoint, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ockham.engine.client.time", clock)

    async def work():
        async with started(checkpoint, stall_s=30.0) as client:
            os.kill(client.pid, signal.SIGSTOP)
            clock.move(31.0)
            assert client.healthy()
            client.submit(ask("a", max_tokens=8000))
            clock.move(29.0)
            assert client.healthy()
            clock.move(2.0)
            assert not client.healthy()
            assert "stuck" in (client.trouble() or "")
            os.kill(client.pid, signal.SIGCONT)
            await until(client.healthy)

    run(work)


def test_an_engine_that_makes_progress_is_well_however_slow_it_is(checkpoint, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ockham.engine.client.time", clock)

    async def work():
        async with started(checkpoint, stall_s=2.0) as client:
            stream = client.submit(ask("a", max_tokens=8000, n=8))
            for _ in range(5):
                os.kill(client.pid, signal.SIGSTOP)
                await until_stopped(client.pid)
                while await something_of(stream):
                    pass  # what it had said before
                clock.move(1.9)
                assert client.healthy()
                os.kill(client.pid, signal.SIGCONT)
                await stream.read()
            os.kill(client.pid, signal.SIGSTOP)
            await until_stopped(client.pid)
            while await something_of(stream):
                pass
            clock.move(2.1)
            assert "stuck" in (client.trouble() or "")
            assert "no step has completed for 2 s" in (client.trouble() or "")
            os.kill(client.pid, signal.SIGCONT)
            await stream.read()
            assert client.healthy()

    run(work)


async def until_stopped(pid: int) -> None:
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


async def something_of(stream: Stream) -> bool:
    """Whether something more of a stream has arrived; it is read then."""
    try:
        async with asyncio.timeout(0.05):
            await stream.read()
    except TimeoutError:
        return False
    return True


def test_a_reader_that_dawdles_gets_everything_merged(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            stream = client.submit(ask("a", max_tokens=300))
            await until(lambda: client.requests == 0)
            (delta,) = await stream.read()
            assert len(delta.token_ids) == 300
            assert delta.finished

    run(work)


def test_a_peer_that_reads_nothing_slows_no_step(checkpoint):
    ours, theirs = socket.socketpair()
    # A buffer that holds a few deltas: the rest must wait, merged, in the engine.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with spawn(theirs) as process, ours:
        theirs.close()
        ours.sendall(frame([config(checkpoint)]))
        receive_frame(ours)
        ours.sendall(frame([ask("a", max_tokens=3000, logprobs=20)]))
        cpu_s = -1.0
        deadline_s = time.monotonic() + 60
        while (now_s := busy_s(process.pid)) > cpu_s or now_s < 0.5:  # until it sleeps again
            assert time.monotonic() < deadline_s
            cpu_s = now_s
            time.sleep(0.5)
        tokens = 0
        while tokens < 3000:
            for message in receive_frame(ours):
                tokens += len(message.get("token_ids", []))
        assert tokens == 3000


def test_an_engine_ends_when_its_peer_does(checkpoint):
    ours, theirs = socket.socketpair()
    with spawn(theirs) as process:
        theirs.close()
        ours.sendall(frame([config(checkpoint)]))
        receive_frame(ours)
        ours.sendall(frame([ask("a", max_tokens=8000)]))
        receive_frame(ours)
        ours.close()
        assert process.wait(10) == 0


def test_a_model_that_cannot_be_loaded_is_reported_as_a_sentence(tmp_path):
    async def work():
        (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
        client = EngineClient(config(tmp_path))
        with pytest.raises(ModelError, match="no-such-model"):
            await client.start()
        await client.close()

    run(work)


def test_closing_ends_the_process_and_what_runs(checkpoint):
    async def work():
        async with started(checkpoint) as client:
            stream = client.submit(ask("a", max_tokens=8000))
            await stream.read()
            pid = client.pid
            await client.close()
            with pytest.raises(EngineDead, match="shut down"):
                await read_all(stream)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(work)


def test_the_engine_needs_no_package_on_the_path_of_the_caller(checkpoint, tmp_path, monkeypatch):
    # A file of the caller's directory must not stand in for a module of the engine.
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)

    async def work():
        async with started(checkpoint) as client:
            assert client.healthy()

    run(work)


def test_a_fault_in_a_step_fails_its_requests_and_ends_the_process(checkpoint):
    """The fault is a real one: a hook at a breakpoint of the program raises."""
    code = (
        "import sys, ockham.engine.engine as e\n"
        "init = e.Engine.__init__\n"
        "def faulty(self, *args, **kwargs):\n"
        "    init(self, *args, **kwargs)\n"
        "    self.attach(next(iter(self.model.program.breakpoints)), lambda run: 1 / 0)\n"
        "e.Engine.__init__ = faulty\n"
        "from ockham.engine.process import main\n"
        "sys.exit(main())\n"
    )
    ours, theirs = socket.socketpair()
    with spawn(theirs, "-c", code) as process, ours:
        theirs.close()
        ours.sendall(frame([config(checkpoint)]))
        receive_frame(ours)
        ours.sendall(frame([ask("a"), ask("b")]))
        messages = []
        with contextlib.suppress(EOFError):
            while True:
                messages += receive_frame(ours)
        refused = [m for m in messages if m["type"] == "refused"]
        assert {m["request_id"] for m in refused} == {"a", "b"}
        assert all(m["status"] == 500 for m in refused)
        assert messages[-1]["type"] == "died"
        assert "ZeroDivisionError" in messages[-1]["message"]
        assert process.wait(10) == 1


@contextlib.contextmanager
def spawn(sock: socket.socket, *command: str):
    """An engine process at the other end of a socket."""
    process = subprocess.Popen(
        [sys.executable, *(command or ("-m", "ockham.engine.process")), str(sock.fileno())],
        pass_fds=[sock.fileno()],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def receive_frame(sock: socket.socket) -> list[dict]:
    import msgspec

    (length,) = HEADER.unpack(receive(sock, HEADER.size))
    return msgspec.msgpack.decode(receive(sock, length))


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def busy_s(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
