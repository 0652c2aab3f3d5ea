"""Writing a directory that loads directly (checkpoint/converted.py), a matrix at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ockham.core.arrays import Array, Floats
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError, ModelError
from ockham.core.owned_files import USUAL_FILE, replacing, write_own
from ockham.core.registry import make, techniques
from ockham.core.seams import (
    Correction,
    FittedFormat,
    Format,
    Layout,
    Linear,
    Role,
    SizedFormat,
)
from ockham.core.units import readable
from ockham.kernels.backends import find_layout_of
from ockham.kernels.layouts import ROWS
from ockham.kernels.memory import as_bytes
from ockham.model.calibration import CalibrationText, calibrate, read_calibration
from ockham.model.checkpoint.converted import BLOCK, BLOCK_FILE, ConvertedSource
from ockham.model.checkpoint.lora import Adapter, MergedSource, read_adapter
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.checkpoint.sources import Reading, Source, TensorSource, pieces_of
from ockham.model.draft_heads.mtp import compile_block, find_block
from ockham.model.files.safetensors import SINGLE_FILE
from ockham.model.hub import WANTED_FILES, resolve
from ockham.model.loading import choose_packer, named_format
from ockham.model.mixing import MIXED, adaptable_matrices, form_of, grouped_mix, named_mix
from ockham.model.packed.layout import (
    METHOD,
    VERSION,
    PackedWeights,
    key_of,
    vector_key,
)
from ockham.model.packed.layout import Layout as FileLayout
from ockham.model.packed.packing import WIDEST, Packer, Packing, plain_format
from ockham.model.program.compile import compile_program
from ockham.model.program.description import ModelDescription
from ockham.model.program.weights import (
    Part,
    UnloadedLinear,
    VectorPart,
    Weights,
    matrix_shape,
    vector_length,
)
from ockham.model.rewriting.applying import Rewriting, reopened, rewrite, was_read
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import write_checkpoint
from ockham.weights.stored import StoredMatrix, check_packs, stacked, stored_matrix


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A text to fit weights to, how many of its tokens at most, and how its token ids are found:
    the tokenizer of the checkpoint at a path is given a text, and adds no special tokens. With
    `for_any`, it is no fault that nothing is fitted to it."""

    path: Path
    most_tokens: int
    encode: Callable[[Path, str], Sequence[int]]
    for_any: bool = False


Adjust = Callable[[OpenedModel, Packer], Mapping[str, Any]]
"""Sees a model, and how it is packed, before it is written; may change what is added to the
products of the packer's fitted matrices. Gives what config.json is to say of that."""


def check_new(out: Path) -> None:
    """Raises ConfigError unless a directory may be made there, or is there and empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is not an empty directory; name another, or remove what is in it."
        )
    place = Path(os.path.abspath(out))
    above = next(each for each in (place, *place.parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{out} cannot be made: {above} is no directory that can be written to.")


def convert(
    config: EngineConfig,
    out: Path,
    progress: Callable[[str], None],
    calibration: CalibrationFile | CalibrationText | None = None,
    lora: Path | None = None,
    mix: Mapping[str, str] | None = None,
    rewriting: Rewriting | None = None,
    correction: str | None = None,
    adjust: Adjust | None = None,
    least_gain: float | None = None,
) -> int:
    """Write the model of `config`, packed as its quantization says, to the directory `out`.

    With `calibration`, matrices are fitted to the inputs that they have on that text. With
    `lora`, the directory of an adapter, it is merged before rounding (see checkpoint/lora.py).
    `mix` names other quantizations for the tensors of some roles or names, and corrections of
    single tensors (see model/mixing.py).
    With `rewriting`, the model is rewritten by transforms first; without a quantization and a mix
    it is then written as a plain checkpoint. `correction` names what is added to the products of
    matrices that are rounded, but for routed experts, embeddings, head and routers; `adjust` may
    change that. With `least_gain` the format's groups are chosen for each tensor (see
    weights/groups.py), where `mix` does not name it.
    Gives the bytes of the weights written. `out` must be empty or not exist; its config.json comes
    last, so that what was interrupted is not taken for a model. Raises ConfigError and ModelError.
    """
    check_new(out)
    forms = [form_of(each) for each in (mix or {}).values()]
    asked = [named_format(each) for each in (config.quantization, *(form for form, _ in forms))]
    correcting = _made(correction, asked, calibration)
    beside: list[Correction] = [make("correction", each) for _, each in forms if each is not None]
    _check_texts(beside, calibration)
    path = resolve(config.model, config.revision)
    opened = open_model(path)
    try:
        if isinstance(opened.source, ConvertedSource):
            raise ConfigError(f"{path} was converted already; convert the original instead.")
        if lora is not None:
            opened = _merged(opened, path, read_adapter(lora))
        if rewriting is not None:
            for each in asked:
                if each is not None:
                    check_packs(each)
            rewritten = rewrite(
                opened, path, rewriting, _text_of(calibration, opened, path), progress
            )
            fits = bool(correcting or beside) or any(isinstance(f, FittedFormat) for f in asked)
            if _is_asked(calibration) and not (fits or was_read(rewritten)):
                raise ConfigError(
                    "nothing is fitted to the text of --calibration: neither these transforms nor "
                    "what follows them read it. Leave it out."
                )
            if config.quantization is None and not mix:
                return _write_plain(rewritten, opened, path, rewriting, out)
            opened = reopened(opened, rewritten)
        if least_gain is not None:
            source = tensors_in(opened.source)
            quantization = config.quantization or ""
            mix = {
                **grouped_mix(quantization, least_gain, opened.description, source),
                **(mix or {}),
            }
        named = named_mix(mix or {}, opened.description, tensors_in(opened.source))
        layout = _layout_for(config, named.formats.values())
        packer = choose_packer(config, opened.config, opened.source, layout)
        if calibration is not None and isinstance(packer.asked, FittedFormat):
            packer = dataclasses.replace(packer, asked=packer.asked.alone())
        corrections = dict(named.corrections)
        if correcting is not None:
            for key in adaptable_matrices(opened.description, tensors_in(opened.source)):
                corrections.setdefault(key, correcting)
        packer = dataclasses.replace(packer, mix=named.formats, corrections=corrections)
        if rewriting is not None and not _fits(packer):
            calibration = None  # it was for the transforms
        fitted, record = _calibrate(opened, packer, path, calibration, progress)
        packer = dataclasses.replace(packer, fitted=fitted)
        told = {} if adjust is None else adjust(opened, packer)
        try:
            out.mkdir(parents=True, exist_ok=True)
            written, digest = _write_weights(opened, packer, out / SINGLE_FILE, progress)
            block = None
            if rewriting is None:  # whose hidden states would be others
                beside_bytes, block = _write_block(opened, packer, out / BLOCK_FILE, progress)
                written += beside_bytes
            copy_beside(path, out, opened.generation_config)
            facts = {
                BLOCK: block,
                "calibration": record,
                "mix": dict(mix) if mix else None,
                "correction": correction,
                **told,
            }
            _write_config(opened, config, packer, digest, facts, out)
        except OSError as error:
            raise ModelError(f"writing {out} failed: {error.strerror or error}.") from error
    finally:
        opened.source.close()
    return written


def _made(
    correction: str | None,
    asked: Sequence[Format | None],
    calibration: CalibrationFile | CalibrationText | None,
) -> Correction | None:
    """The correction that is named. Raises ConfigError for one that has nothing to correct in the
    formats that are asked for, or lacks its text."""
    if correction is None:
        return None
    made: Correction = make("correction", correction)
    if all(each is None or each.dtype is not None for each in asked):
        raise ConfigError(
            f"the correction {correction!r} is for weights that are rounded: name a quantization "
            "such as int4."
        )
    _check_texts([made], calibration)
    return made


def _check_texts(
    corrections: Iterable[Correction],
    calibration: CalibrationFile | CalibrationText | None,
) -> None:
    """Raises ConfigError for a correction that lacks its text."""
    for each in corrections:
        if each.needs_text and calibration is None:
            raise ConfigError(
                f"the correction {each.name!r} is fitted to a text: add --calibration FILE."
            )


def tensors_in(source: Source) -> TensorSource:
    """A source whose tensors are read one by one, as all are that were not converted already."""
    assert not isinstance(source, ConvertedSource)
    return cast(TensorSource, source)


def _layout_for(config: EngineConfig, mixed: Iterable[Format | None]) -> Layout:
    """That of the backend which will read the directory; of the reference backend where no other
    has kernels for all formats."""
    layout = find_layout_of(config.backend)
    asked = [named_format(config.quantization), *mixed]
    return layout if all(each is None or layout.holds(each.name) for each in asked) else ROWS


def _merged(opened: OpenedModel, path: Path, adapter: Adapter) -> OpenedModel:
    """The same model with the adapter in its matrices; closes the model without."""
    if path.is_file():
        raise ConfigError(
            f"{path} is a GGUF file, and adapters are merged into safetensors checkpoints only."
        )
    source = MergedSource(path, opened.config, opened.description, adapter)
    opened.source.close()
    return dataclasses.replace(opened, source=source)


def _calibrate(
    opened: OpenedModel,
    packer: Packer,
    path: Path,
    calibration: CalibrationFile | CalibrationText | None,
    progress: Callable[[str], None],
) -> tuple[dict[str, Linear], dict[str, Any] | None]:
    """The matrices that are fitted to a text, by key, and what config.json is to say of it."""
    if calibration is None:
        return {}, None
    if not _fits(packer):
        if not _is_asked(calibration):
            return {}, None
        names = " or ".join(each.name for each in techniques("format") if hasattr(each.cls, "fit"))
        raise ConfigError(
            f"only {names} is calibrated: give --quantization {names}, or no calibration."
        )
    description = opened.description
    # What cannot be packed is refused before the work.
    refusing = opened.source.measure(packer)
    compile_program(description, refusing, description.max_position_embeddings)
    plain = unquantised(opened.source, description, packer)
    if plain.asked is not None and not packer.mix:
        raise ConfigError(
            f"{path} is quantised already, and calibration begins with unquantised weights: "
            "convert it without, or name the original."
        )
    source = tensors_in(opened.source)
    read = _text_of(calibration, opened, path)
    assert read is not None, "there is a text"
    text = read()
    fitted = calibrate(
        description,
        opened.source.load(plain),
        text.windows,
        lambda parts, role: pieces_of(source, packer, parts, role),
        packer.layout,
        progress,
    )
    return fitted, text.record()


def _is_asked(calibration: CalibrationFile | CalibrationText | None) -> bool:
    """Whether a user gave the text, to whom a text without use would be a mistake."""
    return isinstance(calibration, CalibrationFile) and not calibration.for_any


def _fits(packer: Packer) -> bool:
    """Whether some format, or a correction, is fitted to a text."""
    formats = (packer.asked, *packer.mix.values())
    return bool(packer.corrections) or any(isinstance(f, FittedFormat) for f in formats)


def _text_of(
    calibration: CalibrationFile | CalibrationText | None, opened: OpenedModel, path: Path
) -> Callable[[], CalibrationText] | None:
    """What reads the text, in windows that the model can have."""
    if calibration is None:
        return None
    if isinstance(calibration, CalibrationText):
        known = calibration
        return lambda: known
    return partial(
        read_calibration,
        calibration.path,
        partial(calibration.encode, path),
        calibration.most_tokens,
        opened.description.max_position_embeddings,
    )


def _write_plain(
    model: RewrittenModel, opened: OpenedModel, path: Path, rewriting: Rewriting, out: Path
) -> int:
    """The rewritten model as a checkpoint that is not quantised."""
    dtype = rewriting.dtype
    if dtype is None:
        dtype = opened.source.plain_dtype()
    try:
        out.mkdir(parents=True, exist_ok=True)
        beside = partial(copy_beside, path, out, opened.generation_config)
        return write_checkpoint(model, dtype, out, beside)
    except OSError as error:
        raise ModelError(f"writing {out} failed: {error.strerror or error}.") from error


def unquantised(source: Source, description: ModelDescription, packer: Packer) -> Packer:
    """A packer that rounds nothing, in rows: what the checkpoint quantised is widened."""
    plain = Packer(packer.plain)
    measured = source.measure(plain)
    compile_program(description, measured, description.max_position_embeddings)
    return Packer(packer.plain, plain_format(WIDEST)) if measured.notes() else plain


def _write_weights(
    opened: OpenedModel,
    packer: Packer,
    path: Path,
    progress: Callable[[str], None],
) -> tuple[int, str]:
    """Two runs of the compiler: the first learns what there will be, the second writes it. Gives
    the bytes of the weights, and their digest."""
    description = opened.description
    compiled = partial(_compile_model, description)
    measured = opened.source.measure(packer)
    compiled(measured)
    if isinstance(opened.source, MergedSource):
        opened.source.check_used(measured.used)
    for line in measured.notes():
        progress(line)
    return _write_file(opened.source, packer, compiled, path)


def _compile_model(description: ModelDescription, weights: Weights) -> None:
    compile_program(description, weights, description.max_position_embeddings)


def _write_block(
    opened: OpenedModel, packer: Packer, path: Path, progress: Callable[[str], None]
) -> tuple[int, str | None]:
    """The same of a block that drafts, where the model has one; else no bytes and no digest."""
    description = opened.description
    block = find_block(tensors_in(opened.source), description, None)
    if block is None:
        return 0, None
    shape = description.vocab_size, description.hidden_size
    of_model = UnloadedLinear(packer.plain.name, *shape, 0)
    written, digest = _write_file(
        opened.source,
        packer,
        lambda weights: compile_block(
            block, weights, of_model, of_model, description.max_position_embeddings
        ),
        path,
    )
    progress(f"the block that drafts for the model (mtp) takes {readable(written)} in {path.name}.")
    return written, digest


def _write_file(
    source: Source, packer: Packer, compiled: Callable[[Weights], object], path: Path
) -> tuple[int, str]:
    """Write the weights that `compiled` asks for to a file that becomes `path` when it is whole.
    Nothing is left of half of it, so that the same directory can be taken again."""
    plan = _Plan(tensors_in(source), packer)
    compiled(plan)
    layout = plan.layout
    with replacing(path, USUAL_FILE) as file:
        header = layout.header()
        file.write(header)
        loaded = source.load(packer)
        compiled(_Writer(loaded, loaded.packed, file, len(header), layout))
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
        planned = [_planned(self._source, packing, piece) for piece, packing in pieces]
        matrix = planned[0] if len(planned) == 1 else stacked(planned)
        blank = matrix.blank(self._packer.layout)
        self.layout.add_matrix(key_of(parts), matrix, blank.arrays)
        return UnloadedLinear(matrix.format, *matrix_shape(parts), blank.nbytes)

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = np.empty(vector_length(parts), np.float32)
        self.layout.add_vector(vector_key(parts), values)
        return values


def _planned(source: TensorSource, packing: Packing, parts: Sequence[Part]) -> StoredMatrix:
    """What will be written of a matrix that is packed so. Its weights are read where they decide
    how much that is."""
    chosen, (rows, columns) = packing.format, matrix_shape(parts)
    if isinstance(chosen, SizedFormat) and not packing.kept:
        reading = Reading(source, parts)
        try:
            chosen = chosen.sized(rows, columns, reading.floats())
        except ModelError as error:
            raise reading.named(error) from None
    name, group = chosen.name, chosen.group
    return StoredMatrix(name, rows, columns, group, packing.zeros, rank=packing.rank)


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

    def vector(self, parts: Sequence[VectorPart], offset: float = 0.0) -> Floats:
        values = self._weights.vector(parts, offset)
        self._write(f"{vector_key(parts)}/vector", values)
        return values

    def _write(self, name: str, array: Array) -> None:
        self._file.seek(self._start + self._layout.start(name))
        self._file.write(as_bytes(array).data)


def copy_beside(path: Path, out: Path, generation_config: dict[str, Any]) -> None:
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
    facts: Mapping[str, Any],
    out: Path,
) -> None:
    source = opened.source
    values = {k: v for k, v in opened.config.items() if k != "compression_config"}
    values["quantization_config"] = {
        "quant_method": METHOD,
        "version": VERSION,
        "quantization": MIXED if packer.mix else config.quantization,
        "plain": packer.plain.name,
        "weights": digest,
        **{name: fact for name, fact in facts.items() if fact is not None},
        **({"adapter": source.record()} if isinstance(source, MergedSource) else {}),
    }
    text = opened.config.get("text_config")
    if isinstance(text, dict):
        values["text_config"] = {k: v for k, v in text.items() if k != "quantization_config"}
    write_own(out / "config.json", json.dumps(values, indent=2).encode(), USUAL_FILE)
