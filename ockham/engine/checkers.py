"""The programs that score texts for searches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from concurrent.futures import Future

import msgspec

from ockham.core.arrays import Ints
from ockham.core.confined import Confined, ConfinedLimits
from ockham.core.errors import ConfigError, TaskFailed
from ockham.core.numbers import shown
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
            found.set_exception(
                error
                if isinstance(error, Exception)
                else TaskFailed(f"the checker {self._name!r} was stopped.", "stopped")
            )


def checkers_of(
    given: str | Mapping[str, str] | None, tokenizer: Tokenizer | None
) -> dict[str, Checker]:
    """The checkers of an engine. Raises ConfigError for one that cannot be run, or if there is no
    tokenizer."""
    if not given:
        return {}
    commands = _named(given) if isinstance(given, str) else given
    for name, command in commands.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(command, str):
            raise ConfigError(
                f"checkers map names (letters, digits, - and _) to command lines, got "
                f"{shown(name)}: {shown(command)}."
            )
    if tokenizer is None:
        raise ConfigError("checkers read text: they need a tokenizer.")
    return {name: Checker(name, command, tokenizer) for name, command in commands.items()}


def _named(given: str) -> dict[str, str]:
    """The checkers of "NAME=PROGRAM", or of a JSON object."""
    if given.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(given, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise ConfigError(f"checkers are no JSON object of text ({error}).") from None
    name, equals, command = (part.strip() for part in given.partition("="))
    if not equals:
        raise ConfigError(f"the checker {shown(given)} has no program; write NAME=PROGRAM.")
    return {name: command}
