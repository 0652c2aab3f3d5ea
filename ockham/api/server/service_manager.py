"""systemd, where it started this server: the socket that it passes on, and what it wants to hear.

Both are a few environment variables and a datagram: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket

from ockham.core.errors import ConfigError

FIRST_DESCRIPTOR = 3
"""Of those that are passed on (SD_LISTEN_FDS_START)."""


class ServiceManager:
    """What systemd gave this process; nothing, where systemd did not start it.

    The variables that tell of it are taken out of the environment: no process that is started from
    here may take them to be its own."""

    def __init__(self) -> None:
        """Raises `ConfigError` if anything but one stream socket that listens is passed on."""
        self.socket = _passed_socket()
        """Where to listen. It stays with systemd when this process ends: whoever connects then is
        answered by the next one."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte that abstract names begin with.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Tell that requests are served from now on (Type=notify). `status` is shown by
        `systemctl status`."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Tell that the orderly end has begun."""
        self._tell("STOPPING=1\nSTATUS=Running requests may finish.")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # Nothing depends on being heard, and nothing waits for it.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), self._address)


def _passed_socket() -> socket.socket | None:
    pid, count = os.environ.pop("LISTEN_PID", None), os.environ.pop("LISTEN_FDS", None)
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in (None, "0"):
        return None
    if count != "1":
        raise ConfigError(
            f"systemd passes {count} sockets (LISTEN_FDS), and one is served; name one "
            "ListenStream= in the socket unit."
        )
    try:
        os.set_inheritable(FIRST_DESCRIPTOR, False)
        sock = socket.socket(fileno=FIRST_DESCRIPTOR)
    except OSError as error:
        raise ConfigError(
            f"LISTEN_FDS promises a socket as descriptor {FIRST_DESCRIPTOR}, and there is none "
            f"({error.strerror})."
        ) from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise ConfigError(
            "The socket that systemd passes does not listen for streams; the socket unit needs "
            "ListenStream= and Accept=no."
        )
    return sock
