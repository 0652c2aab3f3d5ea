"""A model that loses channels while it learns: `ockham train prune`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.converting import copy_beside
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD, write_checkpoint
from ockham.training.checkpoints import open_plain
from ockham.training.distilling import HELD_OUT_WINDOWS, DistilSettings, read_pieces_for
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace
from ockham.weights.widths import WidthOptions, feed_forwards, narrow

if TYPE_CHECKING:
    from ockham.training.gradual import Gradual

Tell = Callable[[str], None]

METHOD = "prune"


@dataclass(frozen=True)
class PruneSettings(DistilSettings):
    """The model (`target`) is its own teacher. The `share` of the channels of its feed-forwards
    goes in `periods`, in steps of `multiple` channels of each."""

    share: float = 0.2
    periods: int = 5
    multiple: int = 32
    method: str = METHOD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.periods < 1:
            raise ConfigError(f"periods must be at least 1, got {self.periods}.")
        if self.steps < 5 * self.periods:
            raise ConfigError(
                f"{self.tokens} tokens are {self.steps} steps, too few for {self.periods} periods: "
                f"at least {5 * self.periods} are needed. Give more tokens or fewer periods."
            )
        WidthOptions(self.share, self.multiple)  # checks both


def train_pruned(settings: PruneSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Let channels of a model go while it learns what it said before, and write the smaller model
    to the directory `settings.out`. Gives the mean KL from the original on held-out text.

    A training that was interrupted goes on when it is called again with the same settings. Raises
    ConfigError for settings that cannot be, and ModelError for files that cannot be read.
    """
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"pruning {settings.target} needs text: name .txt or .jsonl files with --data, of the "
            "kind that will be read."
        )
    workplace = Workplace(settings, path, tell)
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    opened = open_plain(path, "the model to prune")
    try:
        original = RewrittenModel(opened, tell)
        model = _gradual(settings, original)
        with workplace.begin():
            return _train(settings, opened, path, original, model, pieces, workplace, tell)
    finally:
        opened.source.close()


def _gradual(settings: PruneSettings, original: RewrittenModel) -> Gradual:
    """What learns. Raises ConfigError for a model that it cannot be."""
    import torch

    from ockham.training.decoder import Decoder
    from ockham.training.gradual import Gradual

    torch.manual_seed(settings.seed)
    options = WidthOptions(settings.share, settings.multiple)
    learned, teacher = Decoder(original), Decoder(original)
    return Gradual(learned, teacher, feed_forwards(original), options, settings.periods)


def _train(
    settings: PruneSettings,
    opened: OpenedModel,
    path: Path,
    original: RewrittenModel,
    model: Gradual,
    pieces: Pieces,
    workplace: Workplace,
    tell: Tell,
) -> dict[str, Any]:
    import torch

    from ockham.training.loop import Loop
    from ockham.training.student import TEXT
    from ockham.training.windows import Windows

    context = min(settings.context, opened.description.max_position_embeddings)
    windows = Windows((each.tokens for each in pieces.train), context, settings.seed, 0)
    first = next(iter(pieces.held_out.values()))
    held_out = Windows((each.tokens for each in first), context, settings.seed, 1)
    loop = Loop(model, {TEXT: windows}, settings, workplace.folder, tell)
    loop.run()
    scores = {
        "kl": round(model.divergence(torch.from_numpy(held_out.batch(0, HELD_OUT_WINDOWS))), 5),
        "tokens": loop.read,
        "seconds": round(loop.seconds, 1),
    }
    result = workplace.new_result()
    scores |= _write(opened, path, original, model, result, scores)
    workplace.finish(result)
    return scores


def _write(
    opened: OpenedModel,
    path: Path,
    original: RewrittenModel,
    model: Gradual,
    result: Path,
    scores: dict[str, Any],
) -> dict[str, Any]:
    """The model without the channels that went; how many there were and are."""
    with tempfile.TemporaryDirectory(prefix="ockham-pruned-") as scratch:
        whole = Path(scratch)
        write_checkpoint(original, "float32", whole, lambda: None, model.learned.values())
        trained = open_model(whole)
        try:
            smaller = RewrittenModel(trained, lambda line: None)
            counts = narrow(smaller, model.kept(), {}, compensate=False)
            card = {"transform": METHOD, **scores, **counts}
            smaller.config[CARD] = [*smaller.config.get(CARD, ()), card]
            dtype = opened.source.plain_dtype()
            write_checkpoint(
                smaller, dtype, result, lambda: copy_beside(path, result, opened.generation_config)
            )
        finally:
            trained.source.close()
    return counts
