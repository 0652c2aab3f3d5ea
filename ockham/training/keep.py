"""Training what decides which cells stay: `ockham train keep`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from ockham.core.errors import ConfigError, ModelError
from ockham.model.checkpoint.keep_files import (
    CONFIG_FILE,
    KVZAP,
    RULES,
    VERSION,
    WEIGHTS_FILE,
    ModelSizes,
)
from ockham.model.hub import BUILT_IN, resolve
from ockham.text.tokenizer import Tokenizer
from ockham.training.documents import Piece, lab_pieces, read_pieces
from ockham.training.extra import require_extra
from ockham.training.keep_heads import Fitted, linear, with_inner
from ockham.training.keep_labels import REPEAT, Labels, Reader, Text, texts_of
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]

LAB_TEXTS = 512


@dataclass(frozen=True)
class KeepSettings:
    """What is trained, for which model, and on what.

    `method` is the rule. `rows` tokens are learned from, of texts that are cut to `context` tokens
    and read twice. `steps` are those of a layer's training (locret). Raises ConfigError for a value
    that cannot be.
    """

    target: str
    out: Path
    method: str = KVZAP
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    rows: int = 16_000
    context: int = 1000
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in RULES:
            raise ConfigError(
                f"there is no rule {self.method!r} to train; there are {', '.join(RULES)}."
            )
        least = {"rows": 512, "context": 16, "steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}.")

    def facts(self) -> dict[str, str]:
        """All that decides the result but the files' contents, as text."""
        return {each.name: str(getattr(self, each.name)) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class TrainedKeep:
    """What came out of a training, in numbers, and how long it took."""

    scores: dict[str, Any]
    seconds: float


def check(settings: KeepSettings) -> Path:
    """Where the model is. Raises ConfigError or ModelError for what cannot be trained for."""
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training for {settings.target} needs text: name .txt or .jsonl files with --data, of "
            "the kind that will be read."
        )
    return path


def train_keep(settings: KeepSettings, tell: Tell = lambda line: None) -> TrainedKeep:
    """Train and write to the directory `settings.out`; see `KeepSettings`.

    Texts that were read before an interruption are not read again. `tell` is told of the progress.
    Raises ConfigError for settings that cannot be, and ModelError for a model that cannot be
    trained for.
    """
    path = check(settings)
    require_extra()
    tokenizer = Tokenizer(path)
    workplace = Workplace(settings, path, tell)
    started = time.monotonic()
    with workplace.begin():
        texts = _texts(settings, path, tokenizer)
        reader = Reader(path, max(len(text.tokens) for text in texts))
        try:
            if not reader.even:
                raise ModelError(
                    f"{settings.target} has layers without attention, or with different numbers of "
                    "key-value heads; such a model cannot be trained for."
                )
            fitted = _fit(settings, reader, texts, workplace, tell)
        finally:
            reader.close()
        seconds = time.monotonic() - started
        result = workplace.new_result()
        trained = {"target": settings.target, "seed": settings.seed, **fitted.scores}
        write_keep(result, settings.method, reader.sizes, fitted, trained)
        workplace.finish(result)
    return TrainedKeep(fitted.scores, seconds)


def _texts(settings: KeepSettings, path: Path, tokenizer: Tokenizer) -> list[Text]:
    rng = Random(f"keep {settings.seed}")
    pieces: list[Piece]
    if settings.data:
        pieces = read_pieces(settings.data, tokenizer, settings.context)
    else:
        pieces = lab_pieces(tokenizer, settings.seed, LAB_TEXTS)
    repeat = tokenizer.encode(REPEAT, add_special_tokens=False)
    texts = texts_of(pieces, repeat, settings.context, rng)
    if len(texts) < 2:
        raise ConfigError("the data has fewer than two texts; give more, or a smaller context.")
    return texts


def _fit(
    settings: KeepSettings, reader: Reader, texts: list[Text], workplace: Workplace, tell: Tell
) -> Fitted:
    if workplace.outputs.exists():
        labels = Labels.load(workplace.outputs)
    else:
        labels = reader.labels(texts, settings.rows, Random(f"rows {settings.seed}"), tell)
        labels.save(workplace.outputs)
    if settings.method == KVZAP:
        return linear(labels)
    return with_inner(labels, settings.steps, settings.seed, tell)


def write_keep(
    directory: Path, rule: str, sizes: ModelSizes, fitted: Fitted, trained: dict[str, Any]
) -> None:
    """Write what a rule found of a model; the directory is there."""
    from safetensors.numpy import save_file

    from ockham.training.writing import give_usual_mode

    config = {
        "rule": rule,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "version": VERSION,
        "trained": trained,
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    save_file(fitted.tensors, directory / WEIGHTS_FILE)
    give_usual_mode(directory / WEIGHTS_FILE)
