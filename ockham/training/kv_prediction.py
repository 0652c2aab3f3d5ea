"""Fitting what predicts one model's keys and values from another: `ockham train kv-prediction`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ockham.core.errors import ConfigError
from ockham.lab.state_maps import FittedMaps, fit_maps
from ockham.model.checkpoint.prediction_files import write_maps
from ockham.model.hub import BUILT_IN, resolve
from ockham.text.tokenizer import Tokenizer
from ockham.training.documents import lab_pieces, read_pieces
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]

LAB_TEXTS = 1024


@dataclass(frozen=True)
class KvPredictionSettings:
    """The base model (`target`), the `auxiliary` that reads for it, and on what both are compared:
    about `rows` tokens, of texts cut to `context` tokens. Raises ConfigError for a value that
    cannot be."""

    target: str
    auxiliary: str
    out: Path
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    rows: int = 50_000
    context: int = 1000
    seed: int = 0
    method: str = "kv-prediction"

    def __post_init__(self) -> None:
        for name, low in (("rows", 512), ("context", 16)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}.")


def train_kv_prediction(
    settings: KvPredictionSettings, tell: Tell = lambda line: None
) -> tuple[FittedMaps, float]:
    """Fit maps and write them to the directory `settings.out`; gives them, and the seconds it took.
    `tell` is told of the progress. Raises ConfigError for settings that cannot be, and ModelError
    for a model whose state cannot be predicted."""
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training for {settings.target} needs text: name .txt or .jsonl files with --data, of "
            "the kind that will be read."
        )
    workplace = Workplace(settings, path, tell)
    started = time.monotonic()
    with workplace.begin():
        fitted = fit_maps(settings.target, settings.auxiliary, _texts(settings, path), tell)
        result = workplace.new_result()
        write_maps(result, fitted.maps)
        workplace.finish(result)
    return fitted, time.monotonic() - started


def _texts(settings: KvPredictionSettings, path: Path) -> list[tuple[int, ...]]:
    """Texts in a drawn order, until there are enough tokens."""
    tokenizer, rng = Tokenizer(path), Random(f"kv-prediction {settings.seed}")
    if settings.data:
        pieces = read_pieces(settings.data, tokenizer, settings.context)
    else:
        pieces = lab_pieces(tokenizer, settings.seed, LAB_TEXTS)
    found: list[tuple[int, ...]] = []
    tokens = 0
    for piece in rng.sample(pieces, len(pieces)):
        if tokens >= settings.rows:
            break
        text = piece.tokens[: settings.context]
        if len(text) >= 2:
            found.append(text)
            tokens += len(text)
    return found
