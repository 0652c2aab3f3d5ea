"""Running the server: its socket, its engine, its signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ockham.api.async_llm import AsyncLLM
from ockham.api.server.app import build_app
from ockham.api.server.gate import Gate
from ockham.api.server.metrics import Metrics
from ockham.api.server.settings import ServerSettings
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, WorkerError

log = logging.getLogger("ockham.server")

CUT_S = 2
"""How long connections may take to close once their requests are done or given up."""


async def serve(config: EngineConfig, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigError` if the address cannot be had, and
    `ModelError` if the model cannot be loaded."""
    sock = bind(settings.host, settings.port)
    try:
        names = settings.served_model_names or (config.model,)
        metrics = Metrics(names[0])
        llm = AsyncLLM.from_config(config, stall_s=settings.stall_s, observer=metrics)
        async with llm:
            gate = Gate(config.max_num_seqs, settings.max_queue)
            app = build_app(llm, settings, gate, metrics)
            log.info(
                "Serving %s, loaded in %.2f s, context %d tokens.",
                ", ".join(names),
                llm.ready.load_s,
                llm.ready.max_model_len,
            )
            await _report_chat_template(llm)
            await _Server(app, llm, gate, settings, url(sock)).serve(sockets=[sock])
    finally:
        sock.close()


async def _report_chat_template(llm: AsyncLLM) -> None:
    """Log what is wrong with the model's chat template, once. Completions need none."""
    try:
        fault, notes = await llm.check_chat_template()
    except WorkerError as error:
        fault, notes = str(error), ()
    for line in notes:
        log.info("%s", line)
    if fault is not None:
        log.warning(
            "%s Chats will be refused; give another template with --chat-template FILE.", fault
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded. Raises `ConfigError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}); choose another --host "
            "or --port."
        ) from error
    return sock


def url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, ended in order: nobody new, wait for those inside, then close.

    The first signal begins the end; a second one makes it immediate.
    """

    def __init__(
        self, app: ASGIApp, llm: AsyncLLM, gate: Gate, settings: ServerSettings, address: str
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=CUT_S,
            )
        )
        self._llm = llm
        self._gate = gate
        self._shutdown_timeout_s = settings.shutdown_timeout_s
        self._address = address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        log.info("Listening on %s", self._address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end, signal.Signals(sig).name)

    def _end(self, name: str) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain(name))
        else:
            log.warning("%s again: closing at once.", name)
            self.should_exit = self.force_exit = True

    async def _drain(self, name: str) -> None:
        self._gate.close()
        log.info(
            "%s: %d requests are running and may take %g s more; new ones are refused.",
            name,
            self._gate.requests,
            self._shutdown_timeout_s,
        )
        if not await self._gate.drained(self._shutdown_timeout_s):
            log.warning("%d requests did not finish and are given up.", self._gate.requests)
            await self._llm.shutdown()  # which answers them with 503
        self.should_exit = True
