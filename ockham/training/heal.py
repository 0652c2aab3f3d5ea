"""Distillation after transforms: `ockham train heal`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.converting import copy_beside
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD, write_checkpoint
from ockham.training.checkpoints import open_plain
from ockham.training.distilling import HELD_OUT_WINDOWS, DistilSettings, read_pieces_for
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]


@dataclass(frozen=True)
class HealSettings(DistilSettings):
    """The model to heal (`target`), and the one that it was made from (`teacher`)."""

    teacher: str = field(kw_only=True)
    method: str = "heal"


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
    workplace = Workplace(settings, path, tell)
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
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
    dtype = student.source.plain_dtype()
    write_checkpoint(
        rewritten,
        dtype,
        result,
        lambda: copy_beside(path, result, student.generation_config),
        model.learned.values(),
    )
    workplace.finish(result)
    return scores
