"""The engine's end of its socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ockham.engine.channel import Channel, frame
from ockham.engine.messages import Abort, ToEngine


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel[ToEngine]]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs, ToEngine)


def test_messages_that_are_not_taken_now_come_next_time_in_their_order(ends):
    ours, channel = ends
    ours.sendall(frame([Abort("a"), Abort("b")]) + frame([Abort("c")]) + frame([Abort("d")])[:-1])
    assert next(channel.receive()) == Abort("a")
    assert next(channel.receive()) == Abort("b")
    assert list(channel.receive()) == [Abort("c")]
    ours.sendall(frame([Abort("d")])[-1:])
    assert list(channel.receive()) == [Abort("d")]
    assert list(channel.receive()) == []


def test_only_what_is_taken_is_decoded(ends):
    ours, channel = ends
    ours.sendall(frame([Abort("a")]) + frame(["no message"]))
    assert next(channel.receive()) == Abort("a")


def test_a_peer_that_has_gone_is_the_end(ends):
    ours, channel = ends
    ours.sendall(frame([Abort("a")]))
    ours.close()
    received = channel.receive()
    assert next(received) == Abort("a")
    with pytest.raises(EOFError):
        next(received)
