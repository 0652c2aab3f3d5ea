"""Work on contexts that were pinned, done while nobody asks for anything."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Sequence as Many
from pathlib import Path

import msgspec

from ockham.core.errors import ConfigError, InvalidRequest, OckhamError
from ockham.core.owned_files import write_own
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Pin, Request

log = logging.getLogger("ockham.engine")

ROWS = 64
"""Of a step of this work: a request that comes waits for one such step at most."""
KIND = "ockham pins 1"
"""What a file of pins begins with, so that no other file is replaced."""
MOST_FILE_BYTES = 1 << 30


class PinFile:
    """The pins that are to outlive the engine, in a file that only its owner may read: it holds
    what was pinned, as tokens."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for one whose directory is not there."""
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"--pins {path}: there is no directory {path.parent}; make it.")
        self._path = path
        self._pins: dict[str, list[Pin]] = {}
        """Those of each model, by its numerics id."""

    def read(self, numerics_id: str) -> list[Pin]:
        """The pins of an engine of the same numerics id; none if there is no file. Raises
        ConfigError for a file that holds something else."""
        try:
            if not self._path.exists():
                return []
            if not self._path.is_file() or self._path.stat().st_size > MOST_FILE_BYTES:
                raise ValueError("it is no file of pins")
            fields = json.loads(self._path.read_text("utf-8"))
            if not isinstance(fields, dict) or fields.get("kind") != KIND:
                raise ValueError("it is no file of pins")
            self._pins = msgspec.convert(fields.get("pins"), dict[str, list[Pin]])
            return self._pins.get(numerics_id, [])
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--pins {self._path}: it cannot be read ({error}); name another, or remove it."
            ) from error

    def write(self, pins: Many[Pin], numerics_id: str) -> None:
        """Replace the file, but for the pins of other models in it. What cannot be written is a
        warning: pins are no answer."""
        try:
            self.read(numerics_id)  # another engine may have written to it
            self._pins[numerics_id] = list(pins)
            fields = {"kind": KIND, "pins": msgspec.to_builtins(self._pins)}
            write_own(self._path, json.dumps(fields).encode())
        except ConfigError as error:
            log.warning("The pins are not kept: %s", error)
        except OSError as error:
            log.warning("The pins are not kept in %s (%s).", self._path, error.strerror)


class Sleeper:
    """Computes pinned prefixes anew after a restart, one after the other, while the engine has
    nothing else to do, and gives way to requests.

    What it runs is an ordinary request of at most `ROWS` rows a step, under the pin's salt: what
    learns from prompts, as drafters do, learns from the pin's text, too. What it has computed when
    it gives way stays in the prefix cache, as of any request that is given up.
    """

    def __init__(self, engine: Engine, file: PinFile | None) -> None:
        """Raises ConfigError for a file that cannot be read."""
        self.engine, self._file = engine, file
        self._due: deque[Pin] = deque()
        self._running: Pin | None = None
        self._begun = 0
        self._rows = engine.scheduler.most_rows
        if file is not None:
            self._due.extend(file.read(engine.model.numerics_id))
            engine.cache.changed = self._note

    @property
    def running(self) -> bool:
        """Whether such work is in the engine."""
        return self._running is not None

    @property
    def left(self) -> int:
        """Pins that are still to be computed."""
        return len(self._due) + self.running

    def wake(self) -> bool:
        """Begin with the next work, if there is any. Call it only when the engine has none."""
        engine = self.engine
        while self._due:
            pin = self._due.popleft()
            try:
                engine.cache.check(pin)
                engine.take(self._request(pin))
            except OckhamError as error:
                log.warning("The pin %r is not restored: %s", pin.name, error)
                continue
            self._running = pin
            engine.scheduler.most_rows = min(self._rows, ROWS)
            return True
        return False

    def give_way(self) -> None:
        """Somebody asks for something: stop at once, and go on when there is nothing to do."""
        if self._running is not None:
            self.engine.abort(self._name)
            self._due.appendleft(self._running)
            self._end()

    def after(self, deltas: list[Delta]) -> list[Delta]:
        """What a step said that is not of this work. A prefix that is complete is pinned."""
        if self._running is None:
            return deltas
        own = [delta for delta in deltas if delta.request_id == self._name]
        if any(delta.finished for delta in own):
            pin = self._running
            self._end()
            try:
                self.engine.cache.pin(pin)
            except InvalidRequest as error:
                log.warning("The pin %r is not restored: %s", pin.name, error)
        return [delta for delta in deltas if delta not in own]

    # -- inside --------------------------------------------------------------------------------

    def _request(self, pin: Pin) -> Request:
        self._begun += 1
        return Request(
            request_id=self._name,
            prompt_token_ids=pin.prompt_token_ids,
            params=SamplingParams(max_tokens=1, temperature=0.0),
            cache_salt=pin.cache_salt,
            detokenize=False,
        )

    @property
    def _name(self) -> str:
        """No caller's id: those have no line end."""
        return f"\nsleep {self._begun}"

    def _end(self) -> None:
        self._running = None
        self.engine.scheduler.most_rows = self._rows

    def _note(self) -> None:
        """Pins have changed: those that are there, and those that are still to be computed."""
        assert self._file is not None, "only then is it called"
        there = self.engine.cache.lasting()
        names = {(pin.cache_salt, pin.name) for pin in there}
        coming = [*([self._running] if self._running else []), *self._due]
        coming = [pin for pin in coming if (pin.cache_salt, pin.name) not in names]
        self._file.write([*there, *coming], self.engine.model.numerics_id)


def sleeper_of(engine: Engine) -> Sleeper:
    """What works for an engine while it has nothing to do. Raises ConfigError for a file of pins
    that cannot be read."""
    path = engine.config.pins
    return Sleeper(engine, PinFile(Path(path)) if path else None)
