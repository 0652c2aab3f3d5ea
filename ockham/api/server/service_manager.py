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


def passed_socket() -> socket.socket | None:
    """The socket that systemd listens on for this process, or None. The variables that tell of it
    are taken away, so that no process that is started from here takes it too.

    Raises `ConfigError` for anything but one stream socket that listens."""
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


class Notifier:
    """Tells systemd how the service is (Type=notify); nobody, where nobody wants to know."""

    def __init__(self) -> None:
        """Takes the address out of the environment: it is this process's alone."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte that abstract names begin with.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Requests are served from now on. `status` is shown by `systemctl status`."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The orderly end has begun."""
        self._tell("STOPPING=1\nSTATUS=Running requests may finish.")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # Nothing depends on being heard, and nothing waits for it.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), self._address)
