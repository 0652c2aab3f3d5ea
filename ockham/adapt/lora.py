"""Many low-rank adapters over one base model, in one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from ockham.core.arrays import Floats
from ockham.core.asks import AdapterAsk
from ockham.core.errors import ConfigError, ModelError
from ockham.core.registry import register
from ockham.core.seams import Adapter, AdapterDtype, FoundAdapter, LowRank, MatrixPart
from ockham.model.checkpoint.lora import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, Pair
from ockham.model.hub import ADAPTERS
from ockham.model.program.weights import halves

MOST_KNOWN = 4096
"""Adapters of which it is remembered what their files hold."""


class LoraOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's names: `max_loras` adapters at most are used by the requests that run at once,
    `max_cpu_loras` are kept in memory (as many, unless more are said), and none has a rank above
    `max_lora_rank`. `dtype` is what their matrices are rounded to: with "auto" they are as precise
    as the model's own."""

    max_loras: int = 8
    max_cpu_loras: int | None = None
    max_lora_rank: int = 16
    dtype: Literal["auto", "int8", "bfloat16", "float32"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_loras", "max_lora_rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ConfigError(
                f"max_cpu_loras is {self.max_cpu_loras}, and the {self.max_loras} adapters of "
                "max_loras are in memory while they are used; raise it, or lower max_loras."
            )


@register("adapter", "lora", exact=False, paper="345")
class Lora(Adapter):
    """Each request may name a LoRA adapter of its own, and rows of different ones share a step.

    The base weights are read once for all rows of a step; what an adapter adds, scale * B (A x), is
    computed for its own rows, which are grouped (S-LoRA, Sheng et al. 2023, arXiv:2311.03285).
    Adapters of any rank lie on disk until they are asked for. A row has the bits that it has alone,
    and a row without an adapter those of the model.
    """

    name: ClassVar[str] = "lora"
    shares: ClassVar[bool] = True
    Options: ClassVar[type[LoraOptions]] = LoraOptions
    Ask: ClassVar[type[AdapterAsk]] = AdapterAsk
    trial: ClassVar[dict[str, str]] = {"name": "lab-steps", "path": "lab-steps"}

    def __init__(self, options: LoraOptions) -> None:
        self._options = options
        self._parts: Mapping[str, MatrixPart] = {}
        self._dtype: AdapterDtype = "bfloat16"
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}
        self._checked: dict[str, str] = {}

    @property
    def most_running(self) -> int:
        return self._options.max_loras

    @property
    def most_held(self) -> int:
        return self._options.max_cpu_loras or self._options.max_loras

    def reserved_bytes(self, parts: Mapping[str, MatrixPart], dtype: AdapterDtype) -> int:
        element_bytes = {"int8": 1, "bfloat16": 2, "float32": 4}[self._own(dtype)]
        rank = self._options.max_lora_rank
        widths = sum(part.inputs + part.outputs for part in parts.values())
        return self.most_held * rank * widths * element_bytes

    def attach(self, parts: Mapping[str, MatrixPart], dtype: AdapterDtype) -> None:
        self._parts = parts
        self._dtype = self._own(dtype)

    def version(self, ask: AdapterAsk) -> str:
        directory = _directory(ask)
        marks = [str(directory)]
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                found = (directory / name).stat()
            except OSError:
                marks.append("none")
            else:
                marks.append(f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}")
        return " ".join(marks)

    def check(self, ask: AdapterAsk) -> None:
        version = self.version(ask)
        if version not in self._checked:
            self._open(ask).close()
            self._remember(self._checked, version, "")

    def find(self, ask: AdapterAsk) -> FoundAdapter:
        version = self.version(ask)
        files = self._open(ask)
        try:
            digest = f"{files.digest()} {self._dtype}"
        except BaseException:
            files.close()
            raise
        self._remember(self._digests, version, digest)
        pairs = {self._parts[module]: pair for module, pair in files.pairs.items()}
        order = {part: place for place, part in enumerate(self._parts.values())}
        return FoundAdapter(
            digest,
            tuple(
                LowRank(part, files.rank, files.scale, _reader(part, pairs[part]))
                for part in sorted(pairs, key=order.__getitem__)
            ),
            self._dtype,
            files.close,
        )

    def identity(self, ask: AdapterAsk) -> str:
        version = self.version(ask)
        if version not in self._digests:
            self.find(ask).close()
        return self._digests[version]

    def _own(self, dtype: AdapterDtype) -> AdapterDtype:
        return dtype if self._options.dtype == "auto" else self._options.dtype

    def _open(self, ask: AdapterAsk) -> AdapterFiles:
        """The files of an adapter that fits the model. Raises ModelError for another."""
        files = AdapterFiles(_directory(ask))
        try:
            if files.rank > self._options.max_lora_rank:
                raise ModelError(
                    f"the adapter {ask.name!r} has rank {files.rank}, above max_lora_rank "
                    f"{self._options.max_lora_rank}; start with a higher one."
                )
            for module, pair in files.pairs.items():
                self._check_target(ask, module, pair)
        except BaseException:
            files.close()
            raise
        return files

    def _check_target(self, ask: AdapterAsk, module: str, pair: Pair) -> None:
        part = self._parts.get(module)
        if part is None:
            raise ModelError(
                f"the adapter {ask.name!r} changes {module!r}, to which nothing can be added: it "
                "is of another base model, or of an embedding, a head, a router or an expert. "
                "Adapters may change projections of attention and of dense feed-forward layers."
            )
        if pair.shape != (part.outputs, part.inputs):
            raise ModelError(
                f"the adapter {ask.name!r} changes {module!r} as a matrix of shape "
                f"{list(pair.shape)}, but the model's has {[part.outputs, part.inputs]}: it is of "
                "another base model."
            )

    def _remember(self, known: dict[str, str], version: str, value: str) -> None:
        with self._lock:
            if len(known) >= MOST_KNOWN:
                known.pop(next(iter(known)))
            known[version] = value


def _reader(part: MatrixPart, pair: Pair) -> Callable[[], tuple[Floats, Floats]]:
    """What reads a pair's factors, with the outputs in the order that the program has."""
    pairs = part.pairs
    if pairs is None:
        return pair.read

    def read() -> tuple[Floats, Floats]:
        a, b = pair.read()
        return a, b[halves(len(b), pairs)]

    return read


def _directory(ask: AdapterAsk) -> Path:
    """Where an adapter's files lie: one that the package carries is called by its name."""
    return ADAPTERS.get(ask.path, Path(ask.path).expanduser().absolute())
