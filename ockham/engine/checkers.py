"""What scores texts for searches: programs, and probes of hidden states."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ockham.core.arrays import Ints
from ockham.core.confined import Confined, ConfinedLimits
from ockham.core.errors import ConfigError, LimitExceeded, ModelError, TaskFailed
from ockham.core.numbers import shown
from ockham.core.probe import Probe
from ockham.engine.named import named
from ockham.model.checkpoint.probe_files import read_probe
from ockham.model.program.description import ModelDescription
from ockham.text.tokenizer import Tokenizer

_WORDS = {"true": 1.0, "false": 0.0}


log = logging.getLogger("ockham.engine")


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
        self._name, self._tokenizer, self._command = name, tokenizer, words[0]
        try:
            self._program = Confined(words, limits)
        except ConfigError as error:
            raise ConfigError(f"the checker {name!r}: {error}") from None

    def submit(self, prompt: Ints, text: str) -> Future[float]:
        """See `core.seams.Judge`."""
        asked = {"prompt": self._tokenizer.decode(prompt.tolist()), "text": text}
        found: Future[float] = Future()
        ran = self._program.submit(msgspec.json.encode(asked))
        ran.add_done_callback(lambda ended: self._score(ended, found))

        def ended(each: Future[float]) -> None:
            if each.cancelled():
                self._program.abandon(ran)

        found.add_done_callback(ended)
        return found

    def close(self) -> None:
        """Kill what runs."""
        self._program.close()

    def _score(self, ended: Future[bytes], found: Future[float]) -> None:
        if not found.set_running_or_notify_cancel():
            return  # nobody waits for it
        try:
            found.set_result(self._read(ended.result()))
        except LimitExceeded as error:
            told = str(error).removeprefix(self._command)
            found.set_exception(LimitExceeded(f"the checker {self._name!r}{told}", error.limit))
        except TaskFailed as error:
            # What a program says of itself may tell of this machine: that is for its log.
            log.warning("The checker %r gave no score: %s", self._name, error)
            told = f"the checker {self._name!r} gave no score ({error.kind})."
            found.set_exception(TaskFailed(told, error.kind))
        except BaseException:  # a cancelled run, too: who waits must not wait for ever
            stopped = TaskFailed(f"the checker {self._name!r} was stopped.", "stopped")
            found.set_exception(stopped)

    def _read(self, said: bytes) -> float:
        lines = said.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        try:
            score = _WORDS.get(last.lower())
            score = float(last) if score is None else score
        except ValueError:
            score = -1.0
        if not 0.0 <= score <= 1.0:
            raise TaskFailed(
                f"its last line must be a number from 0 to 1, true or false, got {shown(last)}.",
                "it printed no number from 0 to 1, and not true or false",
            )
        return score


def checkers_of(
    given: str | Mapping[str, str] | None, tokenizer: Tokenizer | None
) -> dict[str, Checker]:
    """The checkers of an engine. Raises ConfigError for one that cannot be run, or if there is no
    tokenizer."""
    if not given:
        return {}
    commands = named("checker", "PROGRAM", given)
    if tokenizer is None:
        raise ConfigError("checkers read text: they need a tokenizer.")
    return {name: Checker(name, command, tokenizer) for name, command in commands.items()}


def all_probes(given: str | Mapping[str, str] | None) -> dict[str, Probe]:
    """The probes that are named. Raises ConfigError for one that cannot be read."""
    found = {}
    for name, path in named("probe", "DIRECTORY", given or {}).items():
        try:
            found[name] = read_probe(Path(path))
        except ModelError as error:
            raise ConfigError(f"the probe {name!r}: {error}") from None
    return found


def fitting(probe: Probe, model: ModelDescription) -> bool:
    """Whether a probe reads states that a model has."""
    return len(probe.weight) == model.hidden_size and 0 <= probe.facts.layer < model.layers


def check_fits(name: str, probe: Probe, models: Sequence[ModelDescription]) -> None:
    """Raise ConfigError unless a probe fits one of the models, of which the first is the engine's
    own."""
    if not any(fitting(probe, model) for model in models):
        raise ConfigError(
            f"the probe {name!r} reads {len(probe.weight)} values after layer {probe.facts.layer} "
            f"of {shown(probe.facts.model)}, but this model has {models[0].layers} layers with "
            f"{models[0].hidden_size} values each; name one that was trained for it."
        )
