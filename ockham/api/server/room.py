"""How many connections are open at a time, and which of them make room for others."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ockham.core.errors import ConfigError

KEPT_PATHS = frozenset({"/health", "/ping", "/metrics"})
"""What whoever watches a server asks for. There is always a connection left for it."""
KEPT_CONNECTIONS = 16
OWN_DESCRIPTORS = 64
"""Descriptors for everything but connections: files, pipes, the engine's socket."""
MOST_BY_DEFAULT = 4096


class Guest(Protocol):
    """A connection, as far as the room is concerned."""

    def evict(self) -> None:
        """Close at once, without waiting for the peer."""


class Room:
    """Counts connections: those that are served, and those that wait for a request of theirs.

    At most `most` requests are served at a time, and a few more for `KEPT_PATHS`. A connection on
    which nothing is asked holds its place only until somebody else needs it: the one that has been
    idle longest is closed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.busy = 0
        self._idle: dict[Guest, None] = {}
        """In the order in which they became idle."""

    @property
    def idle(self) -> int:
        return len(self._idle)

    def make_room(self) -> bool:
        """Whether one more connection may be accepted, after closing an idle one if need be."""
        if self.count < self.most + KEPT_CONNECTIONS:
            return True
        return self.evict_one()

    def evict_one(self) -> bool:
        """Close the connection that has been idle longest; False if there is none."""
        guest = next(iter(self._idle), None)
        if guest is None:
            return False
        del self._idle[guest]
        guest.evict()
        return True

    def is_idle(self, guest: Guest) -> None:
        """Nothing is asked on this connection now."""
        self._idle.setdefault(guest)

    def is_busy(self, guest: Guest) -> None:
        self._idle.pop(guest, None)

    @contextmanager
    def serve(self, path: str) -> Iterator[bool]:
        """Whether a request may be served; it counts until the block ends."""
        kept = path in KEPT_PATHS
        allowed = kept or self.busy < self.most
        counted = allowed and not kept
        self.busy += counted
        try:
            yield allowed
        finally:
            self.busy -= counted


def raise_descriptor_limit() -> int:
    """Have as many file descriptors as the system allows this process; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS says "no limit" and refuses it; what stood before is then kept.
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def connection_bound(asked: int | None, wanted: int, descriptors: int) -> int:
    """Connections that may be served at a time: what was asked for, or else enough for `wanted`
    requests, as far as the descriptors go. Raises `ConfigError`."""
    most = descriptors - OWN_DESCRIPTORS - KEPT_CONNECTIONS
    if most < 1:
        raise ConfigError(
            f"{descriptors} file descriptors are too few for a server; raise 'ulimit -n' to "
            f"{OWN_DESCRIPTORS + KEPT_CONNECTIONS + wanted}."
        )
    if asked is None:
        return min(most, max(MOST_BY_DEFAULT, wanted))
    if asked > most:
        raise ConfigError(
            f"max_connections is {asked}, but {descriptors} file descriptors leave room for "
            f"{most}; lower it, or raise 'ulimit -n' to "
            f"{asked + OWN_DESCRIPTORS + KEPT_CONNECTIONS}."
        )
    return asked


class Seldom(logging.Filter):
    """Lets one line a second through, and says how many were left out before it."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"{record.getMessage()} ({self._left_out} lines like it were left out.)"
            record.args = ()
        self._next_s, self._left_out = now_s + 1.0, 0
        return True


connections_log = logging.getLogger("ockham.connections")
"""For what strangers can provoke as often as they like."""
connections_log.addFilter(Seldom())
