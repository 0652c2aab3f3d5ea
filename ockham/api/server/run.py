"""Running the server: its socket, its engine, its signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.adapters import check_modules
from ockham.api.server.app import build_app_of
from ockham.api.server.batches.runner import WINDOW_S, Batches
from ockham.api.server.batches.store import Store
from ockham.api.server.chat_facts import report_chat_template
from ockham.api.server.connection import Connection
from ockham.api.server.gate import Gate
from ockham.api.server.house import House, Models
from ockham.api.server.listener import Listener
from ockham.api.server.metrics import Metrics
from ockham.api.server.one_model import OneModel
from ockham.api.server.room import Room, connection_bound, raise_descriptor_limit
from ockham.api.server.service_manager import ServiceManager
from ockham.api.server.settings import ServerSettings
from ockham.api.server.throughput import report
from ockham.api.server.traces import Traces
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.model.hub import served_names

log = logging.getLogger("ockham.server")

CUT_S = 2
"""How long connections may take to close once their requests are done or given up."""
SWITCH_S = 0.001
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 256 << 10


async def serve(config: EngineConfig, settings: ServerSettings) -> None:
    """Serve one model until SIGTERM or SIGINT. Raises `ConfigError` if the address cannot be had,
    and `ModelError` if the model cannot be loaded."""
    room = room_for(config.max_num_seqs + settings.max_queue, settings)
    manager = ServiceManager()
    sock = manager.socket or bind(settings.host, settings.port)
    warn_of_strangers(sock, settings)
    try:
        names = settings.served_model_names or served_names(config.model)
        metrics = Metrics(names[0])
        traces = open_traces(settings)
        llm = AsyncLLM.from_config(config, stall_s=settings.stall_s, observer=metrics)
        async with llm:
            await check_modules(llm, settings.adapters, names)
            models = OneModel(llm, settings, Gate(config.max_num_seqs, settings.max_queue), metrics)
            house = House(settings, models, llm, metrics.registry, traces=traces)
            seats = config.max_num_seqs

            def behind(inner: ServerSettings) -> Models:
                return OneModel(llm, inner, Gate(seats, seats), metrics)

            house.batches = open_batches(house, behind, seats)
            log.info(
                "Serving %s, loaded in %.2f s, context %d tokens.",
                ", ".join(names),
                llm.ready.load_s,
                llm.ready.max_model_len,
            )
            await report_chat_template(llm)
            telling = asyncio.create_task(report(lambda: llm.client.stats, settings.throughput_s))
            try:
                await run(house, room, sock, manager)
            finally:
                telling.cancel()
    finally:
        sock.close()


def open_traces(settings: ServerSettings) -> Traces | None:
    """What sends traces, if they are asked for. Raises `ConfigError`."""
    if settings.otlp_traces_endpoint is None:
        return None
    return Traces(settings.otlp_traces_endpoint)


async def run(house: House, room: Room, sock: socket.socket, manager: ServiceManager) -> None:
    """Answer whoever comes, until SIGTERM or SIGINT."""
    app = build_app_of(house)
    keep_loop_free()
    if house.batches is not None:
        house.batches.start()
    try:
        await _Server(app, house, room, sock, manager).serve(sockets=[])
    finally:
        if house.batches is not None:
            await house.batches.close()
        if house.traces is not None:
            await house.traces.close()


def room_for(requests: int, settings: ServerSettings) -> Room:
    """The connections that are accepted, where so many requests are served or wait at a time."""
    descriptors = raise_descriptor_limit()
    return Room(connection_bound(settings.max_connections, requests, descriptors))


def open_batches(
    house: House, behind: Callable[[ServerSettings], Models], seats: int
) -> Batches | None:
    """The batches that the settings' directory holds. `behind` gives the models as batches reach
    them: with places of their own, of which there are `seats`. Raises `ConfigError`."""
    settings = house.settings
    if settings.batch_dir is None:
        return None
    inner = replace(
        settings,
        api_keys=(),
        admin_api_key=None,
        batch_dir=None,
        access_log=False,
        request_timeout_s=WINDOW_S,
    )
    app = build_app_of(replace(house, settings=inner, models=behind(inner), answering={}))
    store = Store(settings.batch_dir, settings.batch_dir_bytes)
    owners = max(1, len(settings.tenant_keys) + bool(settings.tenant_keys))
    return Batches(store, app, house.models, seats, owners)


def keep_loop_free() -> None:
    """Settings of this process with which neither threads nor memory hold up the event loop."""
    # A thread that works in Python hands the interpreter over to the loop after this time.
    sys.setswitchinterval(SWITCH_S)
    # What was loaded stays for good: later collections need not look at it.
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        # Large bodies get memory of their own, which goes back to the system with them. By default
        # glibc takes them from its heap once it has seen a few.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the address, before anything is loaded: who connects meanwhile
    waits. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            # With SO_REUSEADDR, of two servers that start together the second one fails only here.
            sock.listen()
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}); choose another --host "
            "or --port."
        ) from error
    return sock


def warn_of_strangers(sock: socket.socket, settings: ServerSettings) -> None:
    """Log it if other machines reach the socket, and nothing asks them for a key."""
    if settings.api_keys or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = sock.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        log.warning(
            "Listening on %s without --api-key: whoever reaches this machine can use the model.",
            host,
        )


def url(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, ended in order: nobody new, wait for those inside, then close.

    The first signal begins the end; a second one makes it immediate.
    """

    def __init__(
        self,
        app: ASGIApp,
        house: House,
        room: Room,
        sock: socket.socket,
        manager: ServiceManager,
    ) -> None:
        settings = house.settings
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                ws="none",
                http=functools.partial(Connection, room, settings),  # type: ignore[arg-type]
                timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=CUT_S,
            )
        )
        self._models = house.models
        self._room = room
        self._sock = sock
        self._manager = manager
        self._shutdown_timeout_s = settings.shutdown_timeout_s
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn's own sockets there are none: a `Listener` accepts in their place."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._listener = Listener(
            self._sock,
            self._room,
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            ),
        )
        self._listener.start()
        log.info("Listening on %s", url(self._sock))
        self._manager.ready(f"Listening on {url(self._sock)}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._listener is not None:
            self._listener.close()
        self._sock.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end, signal.Signals(sig).name)

    def _end(self, name: str) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain(name))
        else:
            log.warning("%s again: closing at once.", name)
            self._ending.cancel()
            self._ending = asyncio.create_task(self._give_up())

    async def _drain(self, name: str) -> None:
        self._models.close()
        self._manager.stopping()
        if self._manager.socket is not None and self._listener is not None:
            self._listener.close()  # who connects from now on waits for the next process
        log.info(
            "%s: %d requests are running and may take %g s more; new ones are refused.",
            name,
            self._models.requests,
            self._shutdown_timeout_s,
        )
        if not await self._models.drained(self._shutdown_timeout_s):
            log.warning("%d requests did not finish and are given up.", self._models.requests)
            await self._models.shutdown()  # which answers them with 503
        self.should_exit = True
        log.info("Stopped.")

    async def _give_up(self) -> None:
        """End whoever is inside, in words: their requests are answered with 503, and streams end
        with an error. What is not read within `CUT_S` is cut."""
        await self._models.shutdown()
        self.should_exit = True
