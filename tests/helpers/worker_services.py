"""Services of worker processes that do what must do no harm."""

from __future__ import annotations

import itertools
import os
import re
import signal
import stat
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec

from ockham.core.errors import InvalidRequest
from ockham.core.worker_process import Service


class Do(msgspec.Struct):
    """`what` is done with `number` or `text`."""

    what: str
    number: int = 0
    text: str = ""


def _spin(_: Do) -> str:
    deque(itertools.repeat(0), maxlen=0)  # never ends, and never leaves C
    return ""


def _backtrack(_: Do) -> str:
    return str(re.match("(a*)*b", "a" * 60))


def _sleep(do: Do) -> str:
    time.sleep(do.number)
    return ""


def _eat(do: Do) -> str:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def _keep(do: Do, kept: list[bytearray] = []) -> str:  # noqa: B006
    kept.append(bytearray(do.number))
    return ""


def _print(do: Do) -> str:
    for _ in range(do.number):
        print("x" * 1000)
        os.write(1, b"y" * 1000)
        os.write(2, b"z" * 1000)
    return "quiet"


def _refuse(do: Do) -> str:
    raise InvalidRequest(do.text, "field")


def _fail(do: Do) -> str:
    raise KeyError(do.text)


def _die(do: Do) -> str:
    os.kill(os.getpid(), do.number)
    time.sleep(5)
    return ""


def _descriptors(_: Do) -> str:
    """What is open beside the two pipes and what leads nowhere, and the signals that are blocked
    or ignored."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            mode = os.fstat(int(name)).st_mode
        except OSError:
            continue
        if not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ignored = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_DFL]
    return f"{found}{sorted(blocked)}{ignored}"


DOES: dict[str, Callable[[Do], str]] = {
    "say": lambda do: do.text * max(1, do.number),
    "pid": lambda _: str(os.getpid()),
    "environment": lambda do: os.environ.get(do.text, ""),
    "modules": lambda _: " ".join(sys.modules),
    "spin": _spin,
    "backtrack": _backtrack,
    "sleep": _sleep,
    "eat": _eat,
    "keep": _keep,
    "print": _print,
    "refuse": _refuse,
    "fail": _fail,
    "die": _die,
    "exit": lambda do: os._exit(do.number),
    "descriptors": _descriptors,
}


def _begin(greeting: str | None) -> Callable[[Do], str]:
    if greeting == "no":
        raise InvalidRequest("not with this setup")
    DOES["greeting"] = lambda _: str(greeting)
    return lambda do: DOES[do.what](do)


SERVICE: Service[str | None, Do, str] = Service(
    setup=str | None,  # type: ignore[arg-type]
    question=Do,
    begin=_begin,
)
NAME = "tests.helpers.worker_services:SERVICE"
