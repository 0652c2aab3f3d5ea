"""The folder beside OUT that holds a training in progress, and becomes OUT only as a whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from ockham.core.errors import ConfigError
from ockham.training.settings import Settings

_FACTS_FILE = "training.json"


class Workplace:
    """OUT.training: what the target wrote, the checkpoint, and what both were made with."""

    def __init__(self, settings: Settings, target: Path) -> None:
        """Raises ConfigError if OUT exists, or if a training with other settings stands there."""
        self.out = settings.out
        if self.out.exists():
            raise ConfigError(f"{self.out} exists; name a directory that does not, or remove it.")
        self.folder = self.out.with_name(self.out.name + ".training")
        facts = {**settings.facts(), "files": _digest(settings, target)}
        path = self.folder / _FACTS_FILE
        if path.exists():
            self._check(json.loads(path.read_text(encoding="utf-8")), facts)
        self._facts = facts

    def begin(self) -> None:
        """Make the folder, if it is not there from before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._facts, indent=2)
        (self.folder / _FACTS_FILE).write_text(text, encoding="utf-8")

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs.npz"

    def new_result(self) -> Path:
        """An empty directory for what will be OUT."""
        result = self.folder / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        return result

    def finish(self, result: Path) -> None:
        """The result becomes OUT, and what it was made from goes."""
        result.rename(self.out)
        shutil.rmtree(self.folder)

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


def _digest(settings: Settings, target: Path) -> str:
    """Changes with the data, and with what can be told of the weights without reading them."""
    digest = hashlib.sha256()
    for path in (*settings.data, *settings.held_out):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(f"the data {path} cannot be read: {error.strerror}.") from None
    for path in sorted(target.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()
