"""Accepting connections, no more than there is room for.

asyncio's own loop accepts thousands at a time before the first is looked at, and prints a
traceback for each one that no descriptor is left for.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from ockham.api.server.room import Room, connections_log

BACKLOG = 2048
"""Connections that the system may hold before they are accepted."""
AT_ONCE = 16
"""Accepted in one turn of the event loop. Fewer than a room's spare descriptors: what is evicted
gives its own back a turn later."""
RETRY_S = 0.1
"""How long nobody is accepted where there is no room, or no descriptor."""
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """Accepts on one bound socket, which it does not close."""

    def __init__(
        self, sock: socket.socket, room: Room, protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._sock = sock
        self._room = room
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._room.make_room():
                self._pause()
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF:
                    raise
                connections_log.warning(
                    "A connection cannot be accepted (%s) while %d are open; raise 'ulimit -n', or "
                    "lower --max-connections.",
                    error.strerror,
                    self._room.count,
                )
                self._room.evict_one()
                self._pause()
                return
            self._room.count += 1
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        """Give a connection its protocol, which from then on counts it."""
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the peer has gone
            self._room.count -= 1
            connection.close()

    def _pause(self) -> None:
        """Leave the others in the system's queue for a moment."""
        self._loop.remove_reader(self._sock)
        self._retry = self._loop.call_later(RETRY_S, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._sock, self._accept)
        self._accept()
