"""Finding a technique's settings for the heads of a model: `ockham calibrate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ockham.core.errors import ConfigError
from ockham.core.owned_files import replacing
from ockham.core.registry import SEAMS, Technique, make, name_of, techniques
from ockham.core.seams import Calibrated, Calibration
from ockham.core.visits import BLOCK_KEYS
from ockham.lab.head_samples import LEAST_BLOCKS, HeadSamples
from ockham.lab.tasks.english import write_report
from ockham.model.hub import BUILT_IN, resolve
from ockham.text.tokenizer import Tokenizer
from ockham.training.documents import lab_pieces, read_pieces

Tell = Callable[[str], None]

LAB_TEXTS = 256
FACTS = 4
"""Of a report, which questions could be asked for."""
LEAST_TOKENS = LEAST_BLOCKS * BLOCK_KEYS


def calibrated_techniques() -> dict[str, Technique]:
    """The techniques of all seams that can be calibrated, by name."""
    return {
        each.name: each
        for seam in SEAMS
        for each in techniques(seam)
        if hasattr(each.cls, "calibration")
    }


@dataclass(frozen=True)
class CalibrateSettings:
    """Which technique, with its options, for which model, and on how many texts of at most
    `context` tokens. Raises ConfigError for a value that cannot be."""

    technique: str
    model: str
    out: Path
    data: tuple[Path, ...] = ()
    texts: int = 4
    context: int = 4096
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        known = calibrated_techniques()
        if name_of(self.technique) not in known:
            raise ConfigError(
                f"there is nothing to calibrate of {name_of(self.technique)!r}; there is of: "
                f"{', '.join(known)}."
            )
        for name, least in (("texts", 1), ("context", LEAST_TOKENS)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.out.exists():
            raise ConfigError(f"{self.out} is there already; name a new file, or remove it.")
        if not self.out.absolute().parent.is_dir():
            raise ConfigError(f"{self.out} has no directory to stand in; make that first.")


@dataclass(frozen=True, slots=True)
class Calibrating:
    """What was found, the setting that uses it, and the seconds that it took."""

    found: Calibration
    setting: str
    seconds: float


def calibrate(settings: CalibrateSettings, tell: Tell = lambda line: None) -> Calibrating:
    """Let the model read texts, and write what was found to `settings.out`. `tell` is told of the
    progress. Raises ConfigError for settings or texts that cannot be, and ModelError for a model
    that has no heads to calibrate."""
    seam = calibrated_techniques()[name_of(settings.technique)].seam
    technique: Calibrated = make(seam, settings.technique)
    started = time.monotonic()
    texts = texts_of(settings)
    found = technique.calibration()
    _check_tokens(texts, found.least_tokens)
    samples = HeadSamples(settings.model, max(map(len, texts)), settings.threads)
    try:
        tokens = samples.show(texts, found, tell)
    finally:
        samples.close()
    about = {
        "model": settings.model,
        "texts": len(texts),
        "tokens": tokens,
        "seed": settings.seed,
    }
    with replacing(settings.out, 0o644) as file:
        file.write(found.result(about))
    return Calibrating(found, technique.setting(str(settings.out)), time.monotonic() - started)


def _check_tokens(texts: Sequence[Sequence[int]], least: int) -> None:
    """Raises ConfigError for texts that are too short together."""
    tokens = sum(len(text) // BLOCK_KEYS * BLOCK_KEYS for text in texts)
    if tokens < least:
        raise ConfigError(
            f"this is calibrated on at least {least} tokens, and the texts have {tokens}; give "
            "more or longer ones: --data, --texts, --context."
        )


def texts_of(settings: CalibrateSettings) -> list[list[int]]:
    """As many as are asked for, as token ids: of the given files; else questions of the lab tasks
    for the lab's models, and reports in English for others. Raises ConfigError if none is long
    enough."""
    path = resolve(settings.model)
    tokenizer, rng = Tokenizer(path), Random(f"calibrate {settings.seed}")
    if not settings.data and path not in BUILT_IN.values():
        return [_report(tokenizer, rng, settings.context) for _ in range(settings.texts)]
    if settings.data:
        pieces = read_pieces(settings.data, tokenizer, settings.context)
    else:
        pieces = lab_pieces(tokenizer, settings.seed, LAB_TEXTS)
    long = [piece.tokens[: settings.context] for piece in pieces]
    long = [tokens for tokens in long if len(tokens) >= LEAST_TOKENS]
    if not long:
        raise ConfigError(
            f"no text has {LEAST_TOKENS} tokens, of which heads would leave something out; give "
            "longer ones with --data."
        )
    return [list(tokens) for tokens in rng.sample(long, min(settings.texts, len(long)))]


def _report(tokenizer: Tokenizer, rng: Random, tokens: int) -> list[int]:
    """A report with a question behind it, of no more tokens than that."""
    room = tokens - 2 * BLOCK_KEYS
    report = write_report(rng, room, FACTS, lambda text: len(tokenizer.encode(text)))
    asked = f"{report.text}\n\n{rng.choice(report.hidden).question}"
    text = tokenizer.apply_chat_template([{"role": "user", "content": asked}])
    return tokenizer.encode(text, add_special_tokens=False)[:tokens]
