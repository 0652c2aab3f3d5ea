"""The folder beside OUT that holds a training in progress, and becomes OUT only as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ockham.core.errors import ConfigError
from ockham.core.owned_files import (
    Owned,
    hold,
    holds_nothing,
    make_directory,
    read_own,
    write_own,
)
from ockham.model.checkpoint import keep_files, prediction_files
from ockham.model.checkpoint.draft_files import ACCEPTANCE_FILE, CONFIG_FILE, WEIGHTS_FILE
from ockham.model.files.safetensors import SINGLE_FILE
from ockham.model.hub import WANTED_FILES, weights_facts

OUTPUTS_FILE, CHECKPOINT_FILE = "outputs.npz", "checkpoint.pt"
_FACTS_FILE, _LOCK = "training.json", "lock"
_EARLIER = ("outputs.partial.npz", "checkpoint.partial")
"""What a kill of an earlier version leaves."""
_RESULT = re.compile(r"result-[0-9a-f]{16}")


def _proves_training(name: str, directory: int) -> bool:
    facts = json.loads(read_own(_FACTS_FILE, directory))
    return isinstance(facts, dict) and {"files", "method", "target"} <= facts.keys()


TRAININGS = Owned(
    _FACTS_FILE,
    frozenset({OUTPUTS_FILE, CHECKPOINT_FILE, _LOCK, *_EARLIER}),
    _proves_training,
)
RESULTS = Owned(
    CONFIG_FILE,
    frozenset(
        {
            WEIGHTS_FILE,
            ACCEPTANCE_FILE,
            SINGLE_FILE,
            keep_files.WEIGHTS_FILE,
            keep_files.CONFIG_FILE,
            prediction_files.WEIGHTS_FILE,
            prediction_files.CONFIG_FILE,
            *(name for name in WANTED_FILES if "*" not in name and "/" not in name),
        }
    ),
    lambda name, directory: _RESULT.fullmatch(name) is not None,
)
"""Half a result in a training's folder: the random name is Ockham's."""


class TrainingSettings(Protocol):
    """The settings of a training, a dataclass, as far as its place needs them. All fields decide
    the result."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path: ...

    @property
    def data(self) -> tuple[Path, ...]: ...

    @property
    def held_out(self) -> tuple[Path, ...]: ...


class Workplace:
    """OUT.training: what the target wrote, the checkpoint, and what both were made with."""

    def __init__(
        self,
        settings: TrainingSettings,
        target: Path,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Raises ConfigError if OUT exists, or if in OUT.training stands something else, or a
        training with other settings."""
        self.out, self._tell = Path(os.path.abspath(settings.out)), tell
        if os.path.lexists(self.out):
            raise ConfigError(f"{self.out} exists; name a directory that does not, or remove it.")
        self.folder = self.out.with_name(self.out.name + ".training")
        values = {each.name: str(getattr(settings, each.name)) for each in fields(settings)}
        self._facts = {**values, "files": _digest(settings, target)}
        if TRAININGS.owns(self.folder):
            self._check(json.loads(read_own(self.folder / _FACTS_FILE)), self._facts)
        elif os.path.lexists(self.folder) and not self._is_bare():
            raise ConfigError(
                f"{self.folder} is where the training would be kept, and holds something else: "
                "name another OUT."
            )

    def _is_bare(self) -> bool:
        return stat.S_ISDIR(self.folder.lstat().st_mode) and holds_nothing(self.folder)

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Make the folder, if it is not there from before, and keep other processes from it.

        Raises ConfigError if one trains there."""
        make_directory(self.folder)
        write_own(self.folder / _FACTS_FILE, json.dumps(self._facts, indent=2).encode())
        try:
            lock = hold(self.folder / _LOCK)
        except BlockingIOError:
            raise ConfigError(
                f"another process trains in {self.folder}: wait for it, or name another OUT."
            ) from None
        try:
            yield
        finally:
            os.close(lock)

    @property
    def outputs(self) -> Path:
        return self.folder / OUTPUTS_FILE

    def new_result(self) -> Path:
        """An empty directory for what will be OUT."""
        for half in self.folder.iterdir():
            if RESULTS.owns(half):
                RESULTS.remove(half)
        result = self.folder / f"result-{secrets.token_hex(8)}"
        result.mkdir()
        return result

    def finish(self, result: Path) -> None:
        """The result becomes OUT, and what it was made from goes."""
        result.rename(self.out)
        left = TRAININGS.remove(self.folder)
        if left:
            self._tell(f"{self.folder} stays: {left[0]!a} in it is no file of this training")

    def _check(self, found: dict[str, str], facts: dict[str, str]) -> None:
        for name, value in facts.items():
            if found.get(name) != value:
                what = f"{name} {found.get(name)} there, {value} here"
                if name == "files":
                    what = "its data or its target have changed"
                raise ConfigError(
                    f"{self.folder} holds a training with other settings ({what}): give the same "
                    "ones to go on, remove it, or name another OUT."
                )


def _digest(settings: TrainingSettings, target: Path) -> str:
    """Changes with the data, and with what can be told of the weights without reading them."""
    digest = hashlib.sha256()
    for path in (*settings.data, *settings.held_out):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(f"the data {path} cannot be read: {error.strerror}.") from None
    digest.update(weights_facts(target).encode())
    return digest.hexdigest()
