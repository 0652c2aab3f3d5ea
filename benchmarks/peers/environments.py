"""What a peer needs before it can be measured: an environment of its own and a converted model.

Everything lies in one folder. A step that is done is not done again; one that fails is reported
with the end of its log, and the peer is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.peers import OCKHAM, PEERS, Configuration, Peer

REPOSITORY = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
LOG_LINES = 3
"""Of a failed step's log that are quoted."""
BEGUN_FILE = "begun-by-ockham"
"""In a directory that is removed when its making was cut off: nothing without it is."""
VOCABULARY_VALUES = 32000 * 2048

Say = Callable[[str], None]


class SetupFailed(Exception):
    """A peer cannot be installed, or not be given the model."""


@dataclass(frozen=True)
class Folder:
    """Where environments, models and logs lie."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def answering_checkpoint(self) -> Path:
        return self.path / "answering"

    @property
    def real_checkpoint(self) -> Path:
        return self.path / "real"

    def checkpoint_of(self, which: str) -> Path:
        """The random checkpoint, or that of a `which`: "answering" (answering.py), "real"
        (quality.py) or "long" (benchmarks/long/workloads.py)."""
        kinds = {
            "": self.checkpoint,
            "answering": self.answering_checkpoint,
            "long": self.path / "long",
        }
        return kinds.get(which, self.real_checkpoint)

    def python(self, peer: Peer) -> Path:
        if peer.name == OCKHAM:
            return Path(sys.executable)
        return self.path / "environments" / peer.name / "bin" / "python"

    def model(self, configuration: Configuration, which: str = "") -> Path:
        """The converted model of `checkpoint_of(which)`."""
        prefix = f"{which}-" if which else ""
        return self.path / "models" / f"{prefix}{configuration.model_name}"

    def log(self, name: str) -> Path:
        path = self.path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def worker(self, configuration: Configuration) -> list[str]:
        """The command that starts a configuration's worker, in the repository's root."""
        module = f"benchmarks.peers.workers.{configuration.peer}"
        return [str(self.python(PEERS[configuration.peer])), "-m", module]

    def token_bytes(self, configuration: Configuration) -> int:
        """Bytes of weights that one token of decoding must read: the files without the input
        embedding, of which it reads a row."""
        embedding = int(VOCABULARY_VALUES * configuration.embedding_bits / 8)
        return weight_bytes(self.model(configuration)) - embedding


def weight_bytes(model: Path) -> int:
    """The size of a model's files: of the one file, or of the directory without its tokenizer."""
    return sum(each.stat().st_size for each in _files(model) if "tokenizer" not in each.name)


def read_files(model: Path) -> None:
    """Read a model's files once, so that they are in the page cache."""
    buffer = bytearray(8 << 20)
    for path in _files(model):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _files(model: Path) -> list[Path]:
    """The model itself, or what the directory holds (also one that is linked)."""
    listed = [model] if model.is_file() else sorted(model.resolve().rglob("*"))
    return [each for each in listed if each.is_file()]


def install(folder: Folder, peer: Peer, say: Say) -> None:
    """Make the peer's environment. Raises SetupFailed."""
    python = folder.python(peer)
    done, begun = (python.parent.parent / name for name in ("complete.json", BEGUN_FILE))
    if peer.name == OCKHAM or done.exists():
        return
    say(f"installing {peer.title} ...")
    log = folder.log(f"install-{peer.name}")
    _remove(python.parent.parent)
    python.parent.parent.mkdir(parents=True)
    begun.touch()
    _run([sys.executable, "-m", "venv", str(python.parent.parent)], log)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    environment = dict(peer.build_environment)
    if peer.torch:
        _run([*pip, TORCH], log)
        pins = python.parent.parent / "constraints.txt"
        pins.write_text(TORCH + "\n")
        environment["PIP_CONSTRAINT"] = str(pins)
    _run([*pip, *peer.requirements], log, environment)
    if peer.unwanted:
        _run([*pip[:3], "uninstall", "--yes", *peer.unwanted], log)
    done.write_text(json.dumps(peer.requirements))


def convert(folder: Folder, configuration: Configuration, say: Say, which: str = "") -> None:
    """Write `checkpoint_of(which)` in the configuration's format. Raises SetupFailed."""
    target = folder.model(configuration, which)
    if target.exists():
        return
    say(f"converting the {which or 'random'} model for {configuration.title} ...")
    module = f"benchmarks.peers.converters.{configuration.peer}"
    command = [str(folder.python(PEERS[configuration.peer])), "-m", module]
    command.append(str(folder.checkpoint_of(which).resolve()))
    log = folder.log(f"convert-{configuration.name}")
    write_whole(target, lambda out: [*command, str(out), configuration.precision], log)


def write_whole(target: Path, command: Callable[[Path], list[str]], log: Path) -> None:
    """Have a command write a model at a path; it stands at `target` once it is whole. Raises
    SetupFailed."""
    work = target.with_name(target.name + ".partial")
    _remove(work)
    work.mkdir(parents=True)
    (work / BEGUN_FILE).touch()
    partial = work / target.name
    _run(command(partial.resolve()), log)
    partial.rename(target)
    _remove(work)


def worker_environment(threads: int) -> dict[str, str]:
    """No hub, no telemetry, no more threads than agreed."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
    }


def _run(command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    with log.open("ab") as output:
        code = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=variables,
        ).returncode
    if code != 0:
        end = " | ".join(log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:])
        raise SetupFailed(f"{' '.join(command[1:4])} ended with {code}: {end} (whole log: {log})")


def _remove(path: Path) -> None:
    """Remove a directory that was begun here, whatever another program has put into it. Raises
    SetupFailed if something else stands there."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not (path / BEGUN_FILE).is_file():
        raise SetupFailed(f"{path} is in the way, and was not made here: move it, or remove it")
    shutil.rmtree(path)
