"""What scores texts for searches: programs, and probes of hidden states."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ockham.core.arrays import Ints
from ockham.core.confined import Confined, ConfinedLimits
from ockham.core.errors import ConfigError, TaskFailed, WorkerError
from ockham.core.numbers import shown
from ockham.core.probe import Probe, load_probe
from ockham.text.tokenizer import Tokenizer

_WORDS = {"true": 1.0, "false": 0.0}


_NAME = re.compile(r"[\w-]{1,64}")


class Checker:
    """A program that says how good a text is: it prints a number from 0 to 1, or true or false, as
    the last line. One that fails, hangs or prints something else gives no score: the future raises
    a WorkerError."""

    def __init__(
        self, name: str, command: str, tokenizer: Tokenizer, limits: ConfinedLimits | None = None
    ) -> None:
        """Raises ConfigError for a command that cannot be run."""
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"the checker {name!r} is no command line ({error}).") from None
        if not words:
            raise ConfigError(f"the checker {name!r} has no program; write NAME=PROGRAM.")
        self._name, self._tokenizer = name, tokenizer
        self._program = Confined(words, limits)

    def submit(self, prompt: Ints, text: str) -> Future[float]:
        """See `core.seams.Judge`."""
        asked = {"prompt": self._tokenizer.decode(prompt.tolist()), "text": text}
        found: Future[float] = Future()
        found.set_running_or_notify_cancel()
        ran = self._program.submit(msgspec.json.encode(asked))
        ran.add_done_callback(lambda ended: self._score(ended, found))
        return found

    def close(self) -> None:
        """Kill what runs."""
        self._program.close()

    def _score(self, ended: Future[bytes], found: Future[float]) -> None:
        try:
            lines = ended.result().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            try:
                score = _WORDS.get(last.lower())
                score = float(last) if score is None else score
            except ValueError:
                score = -1.0
            if not 0.0 <= score <= 1.0:
                raise TaskFailed(
                    f"the checker {self._name!r} must print a number from 0 to 1 as its last line, "
                    f"got {shown(last)}.",
                    "score",
                )
            found.set_result(score)
        except BaseException as error:  # a cancelled run, too: who waits must not wait for ever
            stopped = TaskFailed(f"the checker {self._name!r} was stopped.", "stopped")
            found.set_exception(error if isinstance(error, WorkerError) else stopped)


def checkers_of(
    given: str | Mapping[str, str] | None, tokenizer: Tokenizer | None
) -> dict[str, Checker]:
    """The checkers of an engine. Raises ConfigError for one that cannot be run, or if there is no
    tokenizer."""
    if not given:
        return {}
    commands = _named("checker", "PROGRAM", given)
    if tokenizer is None:
        raise ConfigError("checkers read text: they need a tokenizer.")
    return {name: Checker(name, command, tokenizer) for name, command in commands.items()}


def probes_of(given: str | Mapping[str, str] | None, layers: int, width: int) -> dict[str, Probe]:
    """The probes of an engine whose model has so many layers, and hidden states of this width.
    Raises ConfigError for one that does not exist, or is another model's."""
    if not given:
        return {}
    found = {}
    for name, path in _named("probe", "DIRECTORY", given).items():
        probe = load_probe(Path(path))
        if len(probe.weight) != width or not 0 <= probe.facts.layer < layers:
            raise ConfigError(
                f"the probe {name!r} reads {len(probe.weight)} values after layer "
                f"{probe.facts.layer} of {shown(probe.facts.model)}, but this model has {layers} "
                f"layers with {width} values each; name one that was trained for it."
            )
        found[name] = probe
    return found


def _named(kind: str, what: str, given: str | Mapping[str, str]) -> Mapping[str, str]:
    """What is named by "NAME=WHAT", by a JSON object, or by a mapping."""
    named = given if not isinstance(given, str) else _read(kind, what, given)
    for name, value in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(value, str):
            raise ConfigError(
                f"{kind}s map names (letters, digits, - and _) to text, got {shown(name)}: "
                f"{shown(value)}."
            )
    return named


def _read(kind: str, what: str, given: str) -> dict[str, str]:
    if given.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(given, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise ConfigError(f"{kind}s are no JSON object of text ({error}).") from None
    name, equals, value = (part.strip() for part in given.partition("="))
    if not equals:
        raise ConfigError(f"the {kind} {shown(given)} has no {what.lower()}; write NAME={what}.")
    return {name: value}
