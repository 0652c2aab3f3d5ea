"""Writing a directory that loads directly (checkpoint/converted.py), a matrix at a time."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.owned_files import USUAL_FILE, replacing, write_own
from ockham.core.registry import techniques
from ockham.core.seams import FittedFormat, Layout, Linear, Role
from ockham.kernels.backends import find_layout_of
from ockham.kernels.layouts import ROWS
from ockham.kernels.memory import as_bytes
from ockham.model.calibration import Calibrated, calibrate, read_calibration
from ockham.model.checkpoint.converted import ConvertedSource
from ockham.model.checkpoint.lora import Adapter, MergedSource, read_adapter
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.checkpoint.sources import TensorSource, pieces_of
from ockham.model.files.safetensors import SINGLE_FILE
from ockham.model.hub import WANTED_FILES, resolve
from ockham.model.loading import choose_packer, named_format
from ockham.model.packed.layout import (
    METHOD,
    VERSION,
    PackedWeights,
    key_of,
    vector_key,
)
from ockham.model.packed.layout import Layout as FileLayout
from ockham.model.packed.packing import Packer, Packing
from ockham.model.program.compile import compile_program
from ockham.model.program.weights import Part, UnloadedLinear, Weights, matrix_shape
from ockham.weights.stored import StoredMatrix, stacked, stored_matrix


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A text to fit weights to, how many of its tokens at most, and how its token ids are found:
    the tokenizer of the checkpoint at a path is given a text, and adds no special tokens."""

    path: Path
    most_tokens: int
    encode: Callable[[Path, str], Sequence[int]]


def convert(
    config: EngineConfig,
    out: Path,
    progress: Callable[[str], None],
    calibration: CalibrationFile | None = None,
    lora: Path | None = None,
) -> int:
    """Write the model of `config`, packed as its quantization says, to the directory `out`.

    With `calibration`, matrices are fitted to the inputs that they have on that text. With
    `lora`, the directory of an adapter, it is merged before rounding (see checkpoint/lora.py).
    Gives the bytes of the weights written. `out` must be empty or not exist; its config.json comes
    last, so that what was interrupted is not taken for a model. Raises ConfigError and ModelError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is not an empty directory; name another, or remove what is in it."
        )
    named_format(config.quantization)
    path = resolve(config.model, config.revision)
    opened = open_model(path)
    try:
        if isinstance(opened.source, ConvertedSource):
            raise ConfigError(f"{path} was converted already; convert the original instead.")
        if lora is not None:
            opened = _merged(opened, path, read_adapter(lora))
        layout = _layout_for(config)
        packer = choose_packer(config, opened.config, opened.source, layout)
        if calibration is not None and isinstance(packer.asked, FittedFormat):
            packer = dataclasses.replace(packer, asked=packer.asked.alone())
        fitted, record = _calibrate(opened, packer, path, calibration, progress)
        try:
            out.mkdir(parents=True, exist_ok=True)
            written, digest = _write_weights(opened, packer, fitted, out / SINGLE_FILE, progress)
            _copy_beside(path, out, opened.generation_config)
            _write_config(opened, config, packer, digest, record, out)
        except OSError as error:
            raise ModelError(f"writing {out} failed: {error.strerror or error}.") from error
    finally:
        opened.source.close()
    return written


def _layout_for(config: EngineConfig) -> Layout:
    """That of the backend which will read the directory; of the reference backend where no other
    has kernels for the format."""
    layout, asked = find_layout_of(config.backend), named_format(config.quantization)
    return layout if asked is None or layout.holds(asked.name) else ROWS


def _merged(opened: OpenedModel, path: Path, adapter: Adapter) -> OpenedModel:
    """The same model with the adapter in its matrices; closes the model without."""
    if path.is_file():
        raise ConfigError(
            f"{path} is a GGUF file, and adapters are merged into safetensors checkpoints only."
        )
    source = MergedSource(path, opened.config, adapter)
    opened.source.close()
    return dataclasses.replace(opened, source=source)


def _calibrate(
    opened: OpenedModel,
    packer: Packer,
    path: Path,
    calibration: CalibrationFile | None,
    progress: Callable[[str], None],
) -> tuple[dict[str, Linear], dict[str, Any] | None]:
    """The matrices that are fitted to a text, by key, and what config.json is to say of it."""
    if calibration is None:
        return {}, None
    if not isinstance(packer.asked, FittedFormat):
        names = " or ".join(each.name for each in techniques("format") if hasattr(each.cls, "fit"))
        raise ConfigError(
            f"only {names} is calibrated: give --quantization {names}, or no calibration."
        )
    plain, description = Packer(packer.plain), opened.description
    # What cannot be packed is refused before the work.
    refusing = opened.source.measure(packer)
    compile_program(description, refusing, description.max_position_embeddings)
    measured = opened.source.measure(plain)
    compile_program(description, measured, description.max_position_embeddings)
    if measured.notes():
        raise ConfigError(
            f"{path} is quantised already, and calibration begins with unquantised weights: "
            "convert it without, or name the original."
        )
    text = read_calibration(
        calibration.path,
        partial(calibration.encode, path),
        calibration.most_tokens,
        description.max_position_embeddings,
    )
    fitted = calibrate(
        description,
        opened.source.load(plain),
        text.windows,
        packer.asked,
        packer.layout,
        progress,
    )
    return fitted, text.record()


def _write_weights(
    opened: OpenedModel,
    packer: Packer,
    fitted: dict[str, Linear],
    path: Path,
    progress: Callable[[str], None],
) -> tuple[int, str]:
    """Two runs of the compiler: the first learns what there will be, the second writes it. Gives
    the bytes of the weights, and their digest."""
    description = opened.description
    measured = opened.source.measure(packer)
    compile_program(description, measured, description.max_position_embeddings)
    if isinstance(opened.source, MergedSource):
        opened.source.check_used(measured.used)
    for line in measured.notes():
        progress(line)
    assert not isinstance(opened.source, ConvertedSource)
    plan = _Plan(opened.source, packer)  # type: ignore[arg-type]
    compile_program(description, plan, description.max_position_embeddings)
    return _write_file(opened, packer, fitted, plan.layout, path)


def _write_file(
    opened: OpenedModel,
    packer: Packer,
    fitted: dict[str, Linear],
    layout: FileLayout,
    path: Path,
) -> tuple[int, str]:
    """Write the weights to a file that becomes `path` when it is whole. Nothing is left of half of
    it, so that the same directory can be taken again."""
    description = opened.description
    assert not isinstance(opened.source, ConvertedSource)
    with replacing(path, USUAL_FILE) as file:
        header = layout.header()
        file.write(header)
        loaded = opened.source.load(packer)
        weights = Calibrated(loaded, fitted)
        writer = _Writer(weights, loaded.packed, file, len(header), layout)
        compile_program(description, writer, description.max_position_embeddings)
    return layout.nbytes, loaded.packed.digest()


class _Plan:
    """Learns which arrays will be written, in order, and where."""

    def __init__(self, source: TensorSource, packer: Packer) -> None:
        self.layout = FileLayout(packer.layout.name)
        self._source = source
        self._packer = packer

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        pieces = pieces_of(self._source, self._packer, parts, role)
        planned = [_planned(packing, *matrix_shape(piece)) for piece, packing in pieces]
        matrix = planned[0] if len(planned) == 1 else stacked(planned)
        blank = matrix.blank(self._packer.layout)
        self.layout.add_matrix(key_of(parts), matrix, blank.arrays)
        return UnloadedLinear(matrix.format, *matrix_shape(parts), blank.nbytes)

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        values = np.empty(sum(length for _, length in parts), np.float32)
        self.layout.add_vector(vector_key(parts), values)
        return values


def _planned(packing: Packing, out_features: int, in_features: int) -> StoredMatrix:
    """What will be written of a matrix that is packed so."""
    name, group = packing.format.name, packing.format.group
    return StoredMatrix(name, out_features, in_features, group, packing.zeros)


class _Writer:
    """Writes what a loader packs, where the layout has put it, and lets it go.

    `packed` is what the loader has packed; what it was given packed is added."""

    def __init__(
        self,
        weights: Weights,
        packed: PackedWeights,
        file: BinaryIO,
        start: int,
        layout: FileLayout,
    ) -> None:
        self._weights = weights
        self._packed = packed
        self._file = file
        self._start = start
        self._layout = layout

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def linear(self, parts: Sequence[Part], role: Role) -> Linear:
        linear, key = self._weights.linear(parts, role), key_of(parts)
        if stored_matrix(linear) != self._layout.matrices[key]:
            raise ModelError(f"tensor {key!r} was packed otherwise than planned.")
        for name, array in linear.arrays.items():
            self._write(f"{key}/{name}", array)
        self._packed.matrices[key] = linear
        self._packed.let_go()
        return UnloadedLinear(linear.format, *matrix_shape(parts), linear.nbytes)

    def vector(self, parts: Sequence[tuple[str, int]], offset: float = 0.0) -> Floats:
        values = self._weights.vector(parts, offset)
        self._write(f"{vector_key(parts)}/vector", values)
        return values

    def _write(self, name: str, array: Array) -> None:
        self._file.seek(self._start + self._layout.start(name))
        self._file.write(as_bytes(array).data)


def _copy_beside(path: Path, out: Path, generation_config: dict[str, Any]) -> None:
    """The tokenizer's files, the generation settings and an acceptance head of a checkpoint."""
    if path.is_file():
        from ockham.model.checkpoint.gguf.tokenizer import read_tokenizer

        backend, config, _ = read_tokenizer(path)
        backend.save(str(out / "tokenizer.json"))
        (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        if generation_config:
            written = json.dumps(generation_config)
            (out / "generation_config.json").write_text(written, encoding="utf-8")
        return
    for pattern in WANTED_FILES:
        if pattern == "config.json" or pattern.startswith("model") or "/model" in pattern:
            continue
        for file in path.glob(pattern):
            target = out / file.relative_to(path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _write_config(
    opened: OpenedModel,
    config: EngineConfig,
    packer: Packer,
    digest: str,
    calibration: dict[str, Any] | None,
    out: Path,
) -> None:
    source = opened.source
    values = {k: v for k, v in opened.config.items() if k != "compression_config"}
    values["quantization_config"] = {
        "quant_method": METHOD,
        "version": VERSION,
        "quantization": config.quantization,
        "plain": packer.plain.name,
        "weights": digest,
        **({} if calibration is None else {"calibration": calibration}),
        **({"adapter": source.record()} if isinstance(source, MergedSource) else {}),
    }
    text = opened.config.get("text_config")
    if isinstance(text, dict):
        values["text_config"] = {k: v for k, v in text.items() if k != "quantization_config"}
    write_own(out / "config.json", json.dumps(values, indent=2).encode(), USUAL_FILE)
