"""Low-rank adapters in PEFT's files, and a checkpoint into which one is merged.

An adapter gives each matrix W that it targets a product B A of rank r (Hu et al., "LoRA", 2021,
arXiv:2106.09685). Merged, the matrix is W + lora_alpha / r * B A, computed in fp32 and rounded
once, by the format that it is packed in.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.safetensors_source import SafetensorsSource
from ockham.model.files.safetensors import DTYPES, SINGLE_FILE, SafetensorsFile, Tensor
from ockham.model.files.untrusted import read_json
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import Part

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_DIGEST = "base_sha256"
"""In the metadata of an adapter's safetensors file: the SHA-256 of its base's one safetensors file.
Adapters of other makers do not have it."""

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_UNSUPPORTED = (
    *("use_rslora", "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern"),
    *("alpha_pattern", "lora_bias", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora"),
)
"""Options of PEFT with which a matrix is something else than W + lora_alpha / r * B A."""
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base model's weights as they are."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """B (out, r) and A (r, in) of one matrix, in fp32, and what their product is multiplied by."""

    a: Floats
    b: Floats
    scale: float

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) of scale * B A: (stop - start, in)."""
        product: Floats = np.float32(self.scale) * (self.b[start:stop] @ self.a)
        return product


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's factors by the name of the tensor that they are added to, and what its files say
    of its base model: a name, and the digest of its weights (or None)."""

    directory: Path
    factors: dict[str, LowRank]
    base: str | None
    base_sha256: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A (rank, inputs) and B (outputs, rank) of one matrix, checked and not yet read."""

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the matrix."""
        return self.b.shape[0], self.a.shape[1]

    def read(self) -> tuple[Floats, Floats]:
        """Both in fp32. Raises ModelError for values that are no numbers."""
        return _finite(self.a), _finite(self.b)


class AdapterFiles:
    """A PEFT adapter's directory, its file of weights open: its pairs of factors by the name of the
    module that they are of.

    Raises ModelError if a file is missing or damaged, the adapter is no LoRA, it was made with an
    option that is not supported, or a factor is missing or has another rank than its config says.
    """

    def __init__(self, directory: Path) -> None:
        config = _read_config(directory / CONFIG_FILE)
        rank, alpha = config.get("r"), config.get("lora_alpha")
        if type(rank) is not int or rank < 1:
            raise ModelError(
                f"r of {directory / CONFIG_FILE} must be a positive rank, not {rank!r}."
            )
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise ModelError(
                f"lora_alpha of {directory / CONFIG_FILE} is no number, but {alpha!r}."
            )
        path = directory / WEIGHTS_FILE
        if not path.exists():
            raise ModelError(
                f"{directory} has no {WEIGHTS_FILE}; adapters are read from safetensors files only."
            )
        base = config.get("base_model_name_or_path")
        self.directory, self.rank, self.scale = directory, rank, alpha / rank
        self.base = str(base) if base else None
        self.file = SafetensorsFile(path)
        try:
            self.pairs = _pairs(path, self.file.tensors, rank)
        except BaseException:
            self.close()
            raise

    def digest(self) -> str:
        """The SHA-256 of all that decides what the adapter adds."""
        digest = hashlib.sha256(f"{self.rank} {self.scale}".encode())
        block = bytearray(1 << 20)
        for start in range(0, self.file.nbytes, len(block)):
            view = memoryview(block)[: min(len(block), self.file.nbytes - start)]
            self.file.read_into(view, start, "the weights")
            digest.update(view)
        return digest.hexdigest()

    def close(self) -> None:
        self.file.close()


def read_adapter(directory: Path) -> Adapter:
    """Read a PEFT adapter's directory whole. Raises ModelError as `AdapterFiles` does."""
    files = AdapterFiles(directory)
    try:
        factors = {
            f"{module}.weight": LowRank(_values(pair.a), _values(pair.b), files.scale)
            for module, pair in files.pairs.items()
        }
    finally:
        files.close()
    return Adapter(directory, factors, files.base, files.file.metadata.get(BASE_DIGEST))


def _pairs(path: Path, tensors: Mapping[str, Tensor], rank: int) -> dict[str, Pair]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise ModelError(
                f"tensor {name!r} of {path} is no factor of a matrix; only lora_A and lora_B of "
                "linear layers are supported."
            )
        if tensor.dtype not in DTYPES:
            raise ModelError(
                f"tensor {name!r} of {path} has the dtype {tensor.dtype}; supported are "
                f"{', '.join(DTYPES)}."
            )
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise ModelError(f"{path} holds no adapter: it has no tensors.")
    return {module: _pair(path, f"{module}.weight", pair, rank) for module, pair in found.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); name the directory of a PEFT adapter."
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ModelError(f"{path} describes an adapter of type {kind!r}; only LORA is supported.")
    for option in _UNSUPPORTED:
        if config.get(option):
            raise ModelError(f"{path} sets {option} to {config[option]!r}, which is not supported.")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path} sets bias to {config['bias']!r}; only 'none' is supported.")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise ModelError(
            f"{path} sets init_lora_weights to {config['init_lora_weights']!r}, which changes the "
            "base model too; convert the adapter to a plain LoRA with PEFT."
        )
    return config


def _values(tensor: Tensor) -> Floats:
    """A whole tensor in fp32."""
    buffer = bytearray(tensor.nbytes)
    tensor.file.read_into(memoryview(buffer), tensor.start, f"tensor {tensor.name!r}")
    return np.frombuffer(buffer, DTYPES[tensor.dtype]).reshape(tensor.shape).astype(np.float32)


def _finite(tensor: Tensor) -> Floats:
    values = _values(tensor)
    if not np.isfinite(values).all():
        raise ModelError(f"tensor {tensor.name!r} of {tensor.file.path} holds NaN or infinity.")
    return values


def _pair(path: Path, name: str, pair: dict[str, Tensor], rank: int) -> Pair:
    for factor, axis in (("A", 0), ("B", 1)):
        tensor = pair.get(factor)
        if tensor is None:
            raise ModelError(f"{path} has no lora_{factor} for {name!r}.")
        if len(tensor.shape) != 2 or tensor.shape[axis] != rank:
            raise ModelError(
                f"lora_{factor} for {name!r} of {path} has the shape {list(tensor.shape)}, but its "
                f"rank is {rank}."
            )
    return Pair(pair["A"], pair["B"])


class MergedSource(SafetensorsSource):
    """A Hugging Face checkpoint with an adapter merged into its matrices."""

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        description: ModelDescription,
        adapter: Adapter,
    ) -> None:
        """Raises ModelError if the adapter is of another base model, or does not fit this one."""
        super().__init__(directory, config, description)
        self._adapter = adapter
        try:
            self._check_base(directory)
            for name, factors in adapter.factors.items():
                self._check_target(name, factors)
        except BaseException:
            self.close()
            raise

    def rows(self, part: Part) -> Iterator[Array]:
        factors = self._adapter.factors.get(part.name)
        if factors is None:
            yield from super().rows(part)
            return
        start = part.start
        for block in super().rows(part):
            yield block.astype(np.float32) + factors.rows(start, start + len(block))
            start += len(block)

    def check_used(self, used: Collection[str]) -> None:
        """Raises ModelError if the adapter changes a tensor that the model does not use."""
        for name in self._adapter.factors:
            if name not in used:
                raise ModelError(
                    f"the adapter {self._adapter.directory} changes {name!r}, which the model does "
                    "not use."
                )

    def record(self) -> dict[str, Any]:
        """What a converted model's config.json says of the adapter."""
        adapter = self._adapter
        return {
            "name": adapter.directory.resolve().name,
            "matrices": len(adapter.factors),
            "sha256": _sha256(adapter.directory / WEIGHTS_FILE),
        }

    def _check_base(self, directory: Path) -> None:
        adapter, path = self._adapter, directory / SINGLE_FILE
        if adapter.base_sha256 is None:
            return
        if not path.exists() or _sha256(path) != adapter.base_sha256:
            raise ModelError(
                f"the adapter {adapter.directory} was trained on {adapter.base or 'a model'} with "
                f"weights of SHA-256 {adapter.base_sha256[:12]}..., which are not those of "
                f"{directory}; name its own base model."
            )

    def _check_target(self, name: str, factors: LowRank) -> None:
        directory, shape = self._adapter.directory, (len(factors.b), factors.a.shape[1])
        if not self.has(name):
            raise ModelError(
                f"the adapter {directory} changes {name!r}, which {self._checkpoint.directory} "
                "does not have: it is of another base model, or of a module that is not supported."
            )
        if self._owns(name):
            raise ModelError(
                f"{name!r} is quantised, and an adapter can only be merged into unquantised "
                "weights; name the original."
            )
        found = self._checkpoint.tensors[name].shape
        if found != shape:
            raise ModelError(
                f"the adapter {directory} changes {name!r} as a matrix of shape {list(shape)}, but "
                f"the model's has {list(found)}: it is of another base model."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
