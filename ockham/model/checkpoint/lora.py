"""Low-rank adapters in PEFT's files, and a checkpoint into which one is merged.

An adapter gives each matrix W that it targets a product B A of rank r (Hu et al., "LoRA", 2021,
arXiv:2106.09685). Merged, the matrix is W + lora_alpha / r * B A, computed in fp32 and rounded
once, by the format that it is packed in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.errors import ModelError
from ockham.model.checkpoint.safetensors_source import SafetensorsSource
from ockham.model.files.safetensors import DTYPES, SINGLE_FILE, SafetensorsFile, Tensor
from ockham.model.files.untrusted import read_json
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


def read_adapter(directory: Path) -> Adapter:
    """Read a PEFT adapter's directory.

    Raises ModelError if a file is missing or damaged, the adapter is no LoRA, it was made with an
    option that is not supported, or a factor is missing or has another rank than its config says.
    """
    config = _read_config(directory / CONFIG_FILE)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ModelError(f"r of {directory / CONFIG_FILE} must be a positive rank, not {rank!r}.")
    if not isinstance(alpha, (int, float)):
        raise ModelError(f"lora_alpha of {directory / CONFIG_FILE} is no number, but {alpha!r}.")
    path = directory / WEIGHTS_FILE
    if not path.exists():
        raise ModelError(
            f"{directory} has no {WEIGHTS_FILE}; adapters are read from safetensors files only."
        )
    file = SafetensorsFile(path)
    try:
        values = {name: _values(tensor) for name, tensor in file.tensors.items()}
    finally:
        file.close()
    pairs: dict[str, dict[str, Floats]] = {}
    for name, value in values.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise ModelError(
                f"tensor {name!r} of {path} is no factor of a matrix; only lora_A and lora_B of "
                "linear layers are supported."
            )
        pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = value
    if not pairs:
        raise ModelError(f"{path} holds no adapter: it has no tensors.")
    base = config.get("base_model_name_or_path")
    return Adapter(
        directory,
        {name: _low_rank(path, name, pair, rank, alpha / rank) for name, pair in pairs.items()},
        str(base) if base else None,
        file.metadata.get(BASE_DIGEST),
    )


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
    if tensor.dtype not in DTYPES:
        raise ModelError(
            f"tensor {tensor.name!r} of {tensor.file.path} has the dtype {tensor.dtype}; supported "
            f"are {', '.join(DTYPES)}."
        )
    buffer = bytearray(tensor.nbytes)
    tensor.file.read_into(memoryview(buffer), tensor.start, f"tensor {tensor.name!r}")
    return np.frombuffer(buffer, DTYPES[tensor.dtype]).reshape(tensor.shape).astype(np.float32)


def _low_rank(path: Path, name: str, pair: dict[str, Floats], rank: int, scale: float) -> LowRank:
    for factor, axis in (("A", 0), ("B", 1)):
        value = pair.get(factor)
        if value is None:
            raise ModelError(f"{path} has no lora_{factor} for {name!r}.")
        if value.ndim != 2 or value.shape[axis] != rank:
            raise ModelError(
                f"lora_{factor} for {name!r} of {path} has the shape {list(value.shape)}, but its "
                f"rank is {rank}."
            )
    return LowRank(pair["A"], pair["B"], scale)


class MergedSource(SafetensorsSource):
    """A Hugging Face checkpoint with an adapter merged into its matrices."""

    def __init__(self, directory: Path, config: dict[str, Any], adapter: Adapter) -> None:
        """Raises ModelError if the adapter is of another base model, or does not fit this one."""
        super().__init__(directory, config)
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
