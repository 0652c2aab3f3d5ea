"""The API's end of the engine: starts its process, routes what it says, and outlives its death.

Everything here runs in one asyncio loop. The reader never waits for a consumer: what the engine
says about a request is merged in that request's `Stream` until somebody reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ockham.core.config import EngineConfig
from ockham.core.errors import (
    FAULT,
    EngineDead,
    InvalidRequest,
    ModelError,
    OckhamError,
    Overloaded,
    fault,
)
from ockham.core.guarded import GuardStats
from ockham.core.numbers import shown
from ockham.engine.channel import HEADER, frame
from ockham.engine.messages import (
    Abort,
    AdapterQuery,
    CacheQuery,
    CacheReport,
    Delta,
    Died,
    EndThought,
    FromEngine,
    GuardQuery,
    GuardReport,
    Loading,
    Query,
    Ready,
    Refused,
    Report,
    Request,
    Shutdown,
    Stats,
    ToEngine,
)
from ockham.engine.stream import Observer, Stream

log = logging.getLogger("ockham.engine")

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
STABLE_S = 60.0
"""An engine that lived this long is restarted at once when it dies, without a growing delay."""
CLOSE_S = 5.0
MAX_UNSENT_BYTES = 64 << 20
"""Requests that an engine has not even read. More are refused: it is stuck."""


class EngineClient:
    """One engine process at a time, restarted when it dies.

    Requests that an engine held when it died fail with `EngineDead`, and so do those that come
    while no engine is ready.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        stall_s: float = 30.0,
        observer: Observer | None = None,
        restarts: bool = True,
    ) -> None:
        """After `stall_s` in which requests wait and no step completes, the engine counts as
        stuck. Without `restarts` an engine that dies stays dead."""
        self.config = config
        self._restarts = restarts
        self.observer = observer
        self.stats = Stats()
        self.ready: Ready | None = None
        """What the engine said of itself when it was loaded last; None before the first start."""
        self.restarts = 0
        self._stall_s = stall_s
        self._streams: dict[str, Stream] = {}
        self._asked: dict[str, asyncio.Future[Report]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._decoder: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(
            list[FromEngine]
        )
        self._trouble: str | None = "The engine has not been started."
        self._progress_s = 0.0
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The engine's process id, or None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def requests(self) -> int:
        """Requests that somebody here still waits for."""
        return len(self._streams)

    async def start(self) -> Ready:
        """Start the engine and wait until it has loaded the model. Raises `ModelError`."""
        ready = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name="ockham engine reader")
        self._supervisor.add_done_callback(self._supervisor_ended)
        return ready

    def submit(self, request: Request) -> Stream:
        """Hand a request to the engine. Raises `EngineDead` if there is none, `InvalidRequest` if
        its id is in use or the engine could not read it, and `Overloaded` if the engine has stopped
        reading. Whatever is raised, nothing is left of the request."""
        if self._writer is None or self._trouble is not None:
            raise EngineDead(self._trouble or "The engine is not running.")
        if request.request_id in self._streams:
            raise InvalidRequest(
                f"request_id {shown(request.request_id)} is in use by a running request; choose "
                "another, or leave it out.",
                "request_id",
            )
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise Overloaded("The engine does not read its requests; try again later.")
        data = _readable(request)
        now_s = time.monotonic()
        if not self._streams:
            self._progress_s = now_s
        stream = Stream(request, now_s)
        self._streams[request.request_id] = stream
        try:
            self._write(data)
        except BaseException:
            del self._streams[request.request_id]
            raise
        return stream

    async def ask(self, query: CacheQuery) -> CacheReport:
        """What the engine answers. Raises `EngineDead` if there is none, or it dies meanwhile."""
        report = await self._ask(query)
        assert isinstance(report, CacheReport), "it answers what it is asked"
        return report

    async def check_adapter(self, query: AdapterQuery) -> None:
        """Raises `InvalidRequest` for an adapter that cannot be served, and as `ask` does."""
        await self._ask(query)

    async def end_thought(self, query: EndThought) -> None:
        """Raises `InvalidRequest` for a request that does not think now, and as `ask` does."""
        await self._ask(query)

    async def guard(self, query: GuardQuery) -> GuardStats | None:
        """What the quality guard has found; None where there is none. Raises as `ask` does."""
        report = await self._ask(query)
        assert isinstance(report, GuardReport), "it answers what it is asked"
        return report.guard

    async def _ask(self, query: Query) -> Report:
        if self._writer is None or self._trouble is not None:
            raise EngineDead(self._trouble or "The engine is not running.")
        data = _readable(query)
        answer: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._asked[query.ask_id] = answer
        try:
            self._write(data)
            return await answer
        finally:
            self._asked.pop(query.ask_id, None)

    def abort(self, request_id: str) -> None:
        """Free a request's work; its stream is told nothing more. Unknown and finished ids are
        ignored."""
        stream = self._streams.pop(request_id, None)
        if stream is None:
            return
        self._send(Abort(request_id))
        self._tell(lambda observer: observer.aborted(stream))

    def cancel(self, request_id: str) -> None:
        """Free a request's work; its stream ends with `finish_reason` "abort". Unknown and
        finished ids are ignored."""
        if request_id in self._streams:
            self._send(Abort(request_id))

    def trouble(self) -> str | None:
        """What is wrong with the engine, as a sentence; None if nothing is."""
        if self._trouble is not None:
            return self._trouble
        stalled_s = time.monotonic() - self._progress_s
        if self._streams and stalled_s > self._stall_s:
            return (
                "The engine is stuck: requests wait and no step has completed for "
                f"{stalled_s:.0f} s."
            )
        return None

    def healthy(self) -> bool:
        """Whether the engine is there and, if there is work, gets on with it."""
        return self.trouble() is None

    async def close(self) -> None:
        """Stop the engine; running requests fail with `EngineDead`."""
        self._closing = True
        self._trouble = "The engine has been shut down."
        if self._supervisor is None:
            self._kill()
            return
        if self._writer is not None:
            self._send(Shutdown())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._supervisor), CLOSE_S)
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})
        self._fail_all(EngineDead(self._trouble))
        self._kill()

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        """The reader ends only when the client is closed; anything else must not go unseen."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The engine's reader failed.", exc_info=error)
            self._trouble = "The engine's reader failed; restart the server."
            self._fail_all(EngineDead(self._trouble))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        """Tell the observer, whose faults must not end the reader."""
        if self.observer is not None:
            try:
                tell(self.observer)
            except Exception:
                log.exception("The observer of the engine failed.")

    def _send(self, message: ToEngine) -> None:
        self._write(frame([message]))

    def _write(self, data: bytes) -> None:
        if self._writer is not None:
            self._writer.write(data)

    async def _launch(self) -> Ready:
        """Start a process and wait for its first word."""
        ours, theirs = socket.socketpair()
        try:
            self._process = _spawn(theirs)
        except OSError as error:
            ours.close()
            raise ModelError(f"The engine's process cannot be started ({error}).") from error
        finally:
            theirs.close()
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.write(frame([self.config]))
            first = await self._read_first()
        except (OSError, EOFError, msgspec.DecodeError) as error:
            raise ModelError(
                f"The engine ended while it loaded the model ({await self._reap()}); its own "
                "messages stand above."
            ) from error
        except asyncio.CancelledError:
            self._kill()
            raise
        if not isinstance(first, Ready):
            await self._reap()
            raise ModelError(first.message if isinstance(first, Died) else f"Got {first!r}.")
        self.ready = first
        self.stats = Stats()
        self._trouble = None
        self._tell(lambda observer: observer.started(first))
        return first

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            begin_s = time.monotonic()
            reason = await self._listen()
            if time.monotonic() - begin_s > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            if self._closing:
                return
            if self._restarts:
                self._trouble = f"{reason} A new engine is being started; try again shortly."
                log.error("%s Restarting it in %.2g s.", reason, backoff_s)
            else:
                self._trouble = f"{reason} Try again shortly."
                log.error("%s", reason)
            self._fail_all(EngineDead(self._trouble))
            self.stats = Stats()
            self._tell(lambda observer: observer.died())
            if not self._restarts:
                return
            while True:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2.0 * backoff_s, LONGEST_BACKOFF_S)
                try:
                    await self._launch()
                    break
                except OckhamError as error:
                    log.error("The engine cannot be started: %s", error)
                    self._trouble = f"The engine cannot be started: {error}"
            self.restarts += 1
            log.info("The engine is ready again.")

    async def _listen(self) -> str:
        """Route what the engine says until it is gone; how it ended, as a sentence."""
        last_words: str | None = None
        try:
            while True:
                for message in await self._read():
                    if isinstance(message, Died):
                        last_words = message.message
                    else:
                        self._route(message)
        except (OSError, EOFError, msgspec.DecodeError) as error:
            if isinstance(error, msgspec.DecodeError):
                last_words = f"The engine sent something that is not a message: {error}."
            if not self._closing:
                self._trouble = last_words or "The engine process ended."
            how = await self._reap()
        return last_words or f"The engine process ended ({how})."

    def _route(self, message: FromEngine) -> None:
        now_s = time.monotonic()
        if isinstance(message, Delta):
            self._progress_s = now_s
            stream = self._streams.get(message.request_id)
            if stream is not None:
                try:
                    self._route_delta(stream, message, now_s)
                except Exception:
                    log.exception("What the engine said of a request could not be taken in.")
                    stream.fail(fault())
                    self.abort(message.request_id)
                if message.finished:
                    self._streams.pop(message.request_id, None)
        elif isinstance(message, Refused):
            stream = self._streams.pop(message.request_id, None)
            if stream is not None:
                stream.fail(_error(message))
            self._answer(message.request_id, _error(message))
        elif isinstance(message, Report):
            self._answer(message.ask_id, message)
        elif isinstance(message, Stats):
            if message.steps > self.stats.steps:
                self._progress_s = now_s
            self.stats = message
            self._tell(lambda observer: observer.stats(message))

    def _answer(self, ask_id: str, answer: Report | OckhamError) -> None:
        """Give a question its answer, if somebody still waits for it."""
        waiting = self._asked.get(ask_id)
        if waiting is None or waiting.done():
            return
        if isinstance(answer, Report):
            waiting.set_result(answer)
        else:
            waiting.set_exception(answer)

    def _route_delta(self, stream: Stream, delta: Delta, now_s: float) -> None:
        self._tell(lambda observer: observer.delta(stream, delta, now_s))
        if delta.token_ids:
            stream.last_token_s[delta.index] = now_s
        stream.choices_left -= delta.finish_reason is not None
        if delta.stop_reason == FAULT:
            stream.fail(fault())
        else:
            stream.put(delta)

    async def _read_first(self) -> FromEngine:
        """The first message that does not only tell what is being loaded. Raises as `_read`."""
        while True:
            for message in await self._read():
                if not isinstance(message, Loading):
                    return message
                log.info("%s", message.line)

    async def _read(self) -> list[FromEngine]:
        """The messages of the next frame. Raises `EOFError` or `OSError` at the end."""
        assert self._reader is not None
        (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        return self._decoder.decode(await self._reader.readexactly(length))

    async def _reap(self) -> str:
        """Make sure that the process is gone, and say how it went."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        assert self._process is not None
        for _ in range(40):  # it has closed its socket and may still be on its way out
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        self._kill()
        code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _fail_all(self, error: OckhamError) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(error)


_as_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])


def _readable(message: ToEngine) -> bytes:
    """A message as a frame that the engine can read, for one that it cannot read would end it.

    Raises `InvalidRequest`: a caller may have put anything into the fields."""
    try:
        data = frame([message])
        _as_engine.decode(memoryview(data)[HEADER.size :])
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error.__cause__, InvalidRequest):
            raise error.__cause__ from None
        raise InvalidRequest(
            f"The request cannot be sent to the engine: {str(error).rstrip('.')}."
        ) from error
    return data


def child_environment() -> dict[str, str]:
    """The environment in which a process of Ockham's imports this very package, wherever the
    current directory is."""
    environment = dict(os.environ)
    root = str(Path(__file__).parents[2])
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    return environment


def _spawn(sock: socket.socket) -> subprocess.Popen[bytes]:
    """The engine's process, with its end of the socket.

    It has a session of its own, so that Ctrl-C in a terminal reaches the API alone.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ockham.engine.process", str(sock.fileno())],
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
        start_new_session=True,
        env=child_environment(),
    )


def _has_descriptor(stream: object) -> bool:
    """Whether a text stream stands for a file of the system (a notebook's or a test's may not)."""
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False
    return True


def _error(refused: Refused) -> OckhamError:
    if refused.status == InvalidRequest.status:
        return InvalidRequest(refused.message, refused.param, refused.code)
    for kind in (Overloaded, EngineDead):
        if refused.status == kind.status:
            return kind(refused.message)
    return OckhamError(refused.message)
