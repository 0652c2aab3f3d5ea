"""A model that loses channels while it learns: `ockham train prune`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel, open_model
from ockham.model.converting import copy_beside
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD, write_checkpoint
from ockham.training.distilling import HELD_OUT_WINDOWS, open_plain, read_pieces_for
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace
from ockham.weights.widths import WidthOptions, feed_forwards, narrow

if TYPE_CHECKING:
    from ockham.training.gradual import Gradual

Tell = Callable[[str], None]

METHOD = "prune"


@dataclass(frozen=True)
class PruneSettings:
    """The model (`target`), which is its own teacher, and the `share` of the channels of its
    feed-forwards that goes in `periods`, in steps of `multiple` channels of each. It reads `tokens`
    tokens in batches of `batch_tokens` and rows of `context`. `rate` is the learning rate's peak.
    Raises ConfigError for a value that cannot be."""

    target: str
    out: Path
    share: float = 0.2
    periods: int = 5
    multiple: int = 32
    data: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    tokens: int = 200_000
    context: int = 256
    batch_tokens: int = 1024
    rate: float = 1e-4
    seed: int = 0
    method: str = METHOD

    def __post_init__(self) -> None:
        lowest = (("tokens", 1), ("context", 16), ("batch_tokens", 16), ("periods", 1))
        for name, low in lowest:
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        if not 0.0 < self.rate < 1.0:
            raise ConfigError(f"rate must be positive and below 1, got {self.rate}.")
        if self.steps < 5 * self.periods:
            raise ConfigError(
                f"{self.tokens} tokens are {self.steps} steps, too few for {self.periods} periods: "
                f"at least {5 * self.periods} are needed. Give more tokens or fewer periods."
            )
        WidthOptions(self.share, self.multiple)  # checks both

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
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    workplace = Workplace(settings, path, tell)
    opened = open_plain(path, "the model to prune")
    try:
        with workplace.begin():
            return _train(settings, opened, path, pieces, workplace, tell)
    finally:
        opened.source.close()


def _train(
    settings: PruneSettings,
    opened: OpenedModel,
    path: Path,
    pieces: Pieces,
    workplace: Workplace,
    tell: Tell,
) -> dict[str, Any]:
    import torch

    from ockham.training.decoder import Decoder
    from ockham.training.gradual import Gradual
    from ockham.training.loop import Loop
    from ockham.training.student import TEXT
    from ockham.training.windows import Windows

    torch.manual_seed(settings.seed)
    original = RewrittenModel(opened, tell)
    options = WidthOptions(settings.share, settings.multiple)
    learned, teacher = Decoder(original), Decoder(original)
    model = Gradual(learned, teacher, feed_forwards(original), options, settings.periods)
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
            dtype = "bfloat16" if opened.source.plain_dtype() == "BF16" else "float32"
            write_checkpoint(
                smaller, dtype, result, lambda: copy_beside(path, result, opened.generation_config)
            )
        finally:
            trained.source.close()
    return counts
