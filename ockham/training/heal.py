"""Distillation after transforms: `ockham train heal`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.converting import copy_beside
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD, write_checkpoint
from ockham.training.distilling import HELD_OUT_WINDOWS, open_plain, read_pieces_for
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]


@dataclass(frozen=True)
class HealSettings:
    """The model to heal (`target`), the one that it was made from (`teacher`), and what both read:
    `tokens` tokens in batches of `batch_tokens` and rows of `context`. `rate` is the learning
    rate's peak. Raises ConfigError for a value that cannot be."""

    target: str
    teacher: str
    out: Path
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    tokens: int = 200_000
    context: int = 256
    batch_tokens: int = 1024
    rate: float = 1e-4
    seed: int = 0
    method: str = "heal"

    def __post_init__(self) -> None:
        for name, low in (("tokens", 1), ("context", 16), ("batch_tokens", 16)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        if not 0.0 < self.rate < 1.0:
            raise ConfigError(f"rate must be positive and below 1, got {self.rate}.")

    @property
    def steps(self) -> int:
        """Steps of training."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def text_share(self) -> float:
        """All is read from text, as it is."""
        return 1.0

    def facts(self) -> dict[str, str]:
        """All that decides the result but the files' contents, as text."""
        return {each.name: str(getattr(self, each.name)) for each in fields(self)}


def heal(settings: HealSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Let a transformed model learn the distributions of the one that it was made from, and write
    it to the directory `settings.out`. Gives the mean KL on held-out text before and after.

    A training that was interrupted goes on when it is called again with the same settings. Raises
    ConfigError for settings that cannot be, and ModelError for files that cannot be read.
    """
    path, teacher = resolve(settings.target), resolve(settings.teacher)
    if not settings.data and teacher not in BUILT_IN.values():
        raise ConfigError(
            f"healing {settings.target} needs text: name .txt or .jsonl files with --data, of the "
            "kind that will be read."
        )
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    workplace = Workplace(settings, path, tell)
    student, original = open_plain(path, "the model to heal"), open_plain(teacher, "the teacher")
    try:
        if student.description.vocab_size != original.description.vocab_size:
            raise ConfigError(
                f"{settings.target} and {settings.teacher} have other vocabularies: name the model "
                "that it was made from."
            )
        with workplace.begin():
            return _heal(settings, student, original, path, pieces, workplace, tell)
    finally:
        student.source.close()
        original.source.close()


def _heal(
    settings: HealSettings,
    student: OpenedModel,
    original: OpenedModel,
    path: Path,
    pieces: Pieces,
    workplace: Workplace,
    tell: Tell,
) -> dict[str, Any]:
    import torch

    from ockham.training.decoder import Decoder, Healed
    from ockham.training.loop import Loop
    from ockham.training.student import TEXT
    from ockham.training.windows import Windows

    torch.manual_seed(settings.seed)
    rewritten = RewrittenModel(student, tell)
    model = Healed(Decoder(rewritten), Decoder(RewrittenModel(original, tell)))
    context = min(settings.context, student.description.max_position_embeddings)
    windows = Windows((each.tokens for each in pieces.train), context, settings.seed, 0)
    first = next(iter(pieces.held_out.values()))
    held_out = Windows((each.tokens for each in first), context, settings.seed, 1)
    rows = torch.from_numpy(held_out.batch(0, HELD_OUT_WINDOWS))
    before = model.divergence(rows)  # before a checkpoint is read
    loop = Loop(model, {TEXT: windows}, settings, workplace.folder, tell)
    loop.run()
    scores = {
        "kl_before": round(before, 5),
        "kl_after": round(model.divergence(rows), 5),
        "tokens": loop.read,
        "seconds": round(loop.seconds, 1),
    }
    result = workplace.new_result()
    card = {"transform": "heal", "teacher": settings.teacher, **scores}
    rewritten.config[CARD] = [*rewritten.config.get(CARD, ()), card]
    dtype = "bfloat16" if student.source.plain_dtype() == "BF16" else "float32"
    write_checkpoint(
        rewritten,
        dtype,
        result,
        lambda: copy_beside(path, result, student.generation_config),
        model.learned.values(),
    )
    workplace.finish(result)
    return scores
