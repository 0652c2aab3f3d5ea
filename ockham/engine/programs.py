"""Runs programs that models wrote, for searches that compare what they do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from ockham.core import trial
from ockham.core.confined import Confined, ConfinedLimits
from ockham.core.errors import LimitExceeded, TaskFailed

LIMITS = ConfinedLimits(cpu_s=2, wall_s=20.0, memory_bytes=1 << 29, output_bytes=1 << 17)
"""Of one program, with all of its calls."""


class _Told(msgspec.Struct):
    """The last line of what a trial prints."""

    outputs: list[str] | None = None
    failed: str | None = None


class Programs:
    """Python programs that are run where they can do nothing but compute (`core.trial`)."""

    def __init__(self, limits: ConfinedLimits = LIMITS) -> None:
        """Raises ConfigError where programs cannot be confined."""
        self._python = Confined([sys.executable, "-I", "-S", trial.__file__], limits)

    def submit(self, program: str, calls: Sequence[str]) -> Future[tuple[str, ...]]:
        """See `core.seams.Programs`."""
        found: Future[tuple[str, ...]] = Future()
        ran = self._python.submit(msgspec.json.encode({"program": program, "calls": list(calls)}))
        ran.add_done_callback(lambda ended: _tell(ended, found))

        def ended(each: Future[tuple[str, ...]]) -> None:
            if each.cancelled():
                self._python.abandon(ran)

        found.add_done_callback(ended)
        return found

    def close(self) -> None:
        """Kill what runs."""
        self._python.close()


def _tell(ended: Future[bytes], found: Future[tuple[str, ...]]) -> None:
    if not found.set_running_or_notify_cancel():
        return  # nobody waits for it
    try:
        found.set_result(_read(ended.result()))
    except LimitExceeded as error:
        said = str(error).removeprefix(sys.executable)
        found.set_exception(LimitExceeded(f"the program{said}", error.limit))
    except TaskFailed as error:
        failed = TaskFailed(f"the program gave no output ({error.kind}).", error.kind)
        found.set_exception(failed)
    except BaseException:  # a cancelled run, too: who waits must not wait for ever
        found.set_exception(TaskFailed("the program was stopped.", "stopped"))


def _read(said: bytes) -> tuple[str, ...]:
    *_, last = said.rstrip(b"\n").split(b"\n")
    try:
        told = msgspec.json.decode(last, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TaskFailed("a trial ended without a word.", "it ended by itself") from None
    if told.outputs is None:
        kind = told.failed or "nothing"
        raise TaskFailed(f"no call returned: {kind}.", kind)
    return tuple(told.outputs)
