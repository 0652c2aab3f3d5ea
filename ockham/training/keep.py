"""Training what decides which cells stay: `ockham train keep`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ockham.cache.keep.learned import HeadKind, trained_rules
from ockham.core.errors import ConfigError, ModelError
from ockham.model.checkpoint.keep_files import (
    CONFIG_FILE,
    VERSION,
    WEIGHTS_FILE,
    ModelSizes,
)
from ockham.model.hub import BUILT_IN, resolve
from ockham.text.tokenizer import Tokenizer
from ockham.training.checkpoints import plain_checkpoint
from ockham.training.documents import Piece, lab_pieces, read_pieces
from ockham.training.extra import require_extra
from ockham.training.keep_heads import Fitted, linear, with_inner
from ockham.training.keep_labels import (
    HELD_OUT_TEXTS,
    REPEAT,
    ROWS_OF_TEXT,
    Labels,
    Reader,
    Text,
    texts_of,
)
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]

LAB_TEXTS = 512
STEPS: dict[HeadKind, int] = {"linear": 1, "inner": 1000, "alpha": 150}
"""The usual ones, by what is learned."""


@dataclass(frozen=True)
class KeepSettings:
    """What is trained, for which model, and on what.

    `method` is the rule, whose class says what is learned. Texts are cut to `context` tokens and
    read twice. Scores of tokens are learned from `rows` tokens; `steps` are those of a layer's
    training, where heads have an inner layer. Where a number for each head is learned, `steps` is
    how many texts are learned from. None for the usual number. Raises ConfigError for a value that
    cannot be.
    """

    target: str
    out: Path
    method: str
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    rows: int = 16_000
    context: int = 1000
    steps: int | None = None
    seed: int = 0

    @property
    def all_steps(self) -> int:
        """The steps, as they were given or as usual."""
        return self.steps or STEPS[trained_rules()[self.method]]

    def __post_init__(self) -> None:
        rules = trained_rules()
        if self.method not in rules:
            raise ConfigError(
                f"there is no rule {self.method!r} to train; there are {', '.join(rules)}."
            )
        least = {"rows": 512, "context": 16, "steps": 1}
        for name, low in least.items():
            if (given := getattr(self, name)) is not None and given < low:
                raise ConfigError(f"{name} must be at least {low}, got {given}.")


@dataclass(frozen=True, slots=True)
class TrainedKeep:
    """What came out of a training, in numbers, and how long it took."""

    scores: dict[str, Any]
    seconds: float


def check(settings: KeepSettings) -> Path:
    """Where the model is. Raises ConfigError or ModelError for what cannot be trained for."""
    path = resolve(settings.target)
    if trained_rules()[settings.method] == "alpha":
        path = plain_checkpoint(settings.target, "What is learned serves it too.")
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
            fitted = _fit(settings, path, reader, texts, workplace, tell)
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
    settings: KeepSettings,
    path: Path,
    reader: Reader,
    texts: list[Text],
    workplace: Workplace,
    tell: Tell,
) -> Fitted:
    kind = trained_rules()[settings.method]
    if kind == "alpha":
        from ockham.training.keep_alphas import alphas

        steps, seed = settings.all_steps, settings.seed
        return alphas(path, reader.sizes, texts, settings.context, steps, seed, tell)
    _check_texts(texts, settings.rows)
    if workplace.outputs.exists():
        labels = Labels.load(workplace.outputs)
    else:
        labels = reader.labels(texts, settings.rows, Random(f"rows {settings.seed}"), tell)
        labels.save(workplace.outputs)
    if kind == "linear":
        return linear(labels)
    return with_inner(labels, settings.all_steps, settings.seed, tell)


def _check_texts(texts: list[Text], rows: int) -> None:
    """Raise ConfigError where so many rows are of so few texts that none is left to measure."""
    count = found = 0
    while found < rows and count < len(texts):
        found += min(ROWS_OF_TEXT, texts[count].context)
        count += 1
    if count < HELD_OUT_TEXTS:
        raise ConfigError(
            f"scores are learned from at least {HELD_OUT_TEXTS} texts, one of which only measures; "
            f"{rows} rows come of {count}: ask for more rows (--rows), or give more texts."
        )


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
