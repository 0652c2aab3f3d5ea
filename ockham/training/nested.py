"""Smaller models inside of one, trained together: `ockham train nested`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.converting import copy_beside
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD, write_checkpoint
from ockham.training.checkpoints import open_plain
from ockham.training.distilling import (
    HELD_OUT_WINDOWS,
    DistilSettings,
    read_pieces_for,
    rows_to_fit,
)
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace
from ockham.weights.widths import feed_forwards, sort_channels, width_of

Tell = Callable[[str], None]

METHOD = "nested"
SORTED_TOKENS = 4096
"""Of the text, what channels are sorted by."""


@dataclass(frozen=True)
class NestedSettings(DistilSettings):
    """The original is `target`. Shares of its feed-forwards' channels (`widths`, in steps of
    `multiple` channels) shall be models of their own. `data_weight` is that of the text beside the
    original's distributions. Channels are sorted first, unless `keep_order`."""

    tokens: int = 1_000_000
    context: int = 512
    batch_tokens: int = 2048
    rate: float = 1e-3
    widths: tuple[float, ...] = (0.25, 0.5)
    data_weight: float = 0.25
    multiple: int = 32
    keep_order: bool = False
    method: str = METHOD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multiple < 1:
            raise ConfigError(f"multiple must be at least 1, got {self.multiple}.")
        if not 0.0 <= self.data_weight < math.inf:
            raise ConfigError(f"data_weight must be at least 0 and finite, got {self.data_weight}.")
        if not self.widths:
            raise ConfigError(
                "no widths were given; name shares of the channels, such as 0.25,0.5."
            )
        for width in self.widths:
            if not 0.0 < width < 1.0:
                raise ConfigError(
                    f"widths must lie between 0 and 1, got {width}: each is the share of the "
                    "channels of a smaller model, such as 0.5."
                )


def train_nested(settings: NestedSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Train a model so that the first channels of its feed-forwards are smaller models, and write
    it to the directory `settings.out`. Gives the mean KL from the original on held-out text of each
    width, before and after.

    A training that was interrupted goes on when it is called again with the same settings. Raises
    ConfigError for settings that cannot be, and ModelError for files that cannot be read.
    """
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training the widths of {settings.target} needs text: name .txt or .jsonl files with "
            "--data, of the kind that will be read."
        )
    workplace = Workplace(settings, path, tell)
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    opened = open_plain(path, "the model to train")
    try:
        _check_widths(settings, RewrittenModel(opened, tell))
        with workplace.begin():
            return _train(settings, opened, path, pieces, workplace, tell)
    finally:
        opened.source.close()


def _train(
    settings: NestedSettings,
    opened: OpenedModel,
    path: Path,
    pieces: Pieces,
    workplace: Workplace,
    tell: Tell,
) -> dict[str, Any]:
    import torch

    from ockham.training.decoder import Decoder, Nested
    from ockham.training.loop import Loop
    from ockham.training.student import TEXT
    from ockham.training.windows import Windows

    torch.manual_seed(settings.seed)
    context = min(settings.context, opened.description.max_position_embeddings)
    windows = Windows((each.tokens for each in pieces.train), context, settings.seed, 0)
    first = next(iter(pieces.held_out.values()))
    held_out = Windows((each.tokens for each in first), context, settings.seed, 1)
    original = Decoder(RewrittenModel(opened, tell))
    rewritten = RewrittenModel(opened, tell, lambda: rows_to_fit(windows, SORTED_TOKENS))
    if not settings.keep_order:
        sort_channels(rewritten, METHOD)
    model = Nested(
        Decoder(rewritten), original, settings.widths, settings.multiple, settings.data_weight
    )
    rows = torch.from_numpy(held_out.batch(0, HELD_OUT_WINDOWS))
    kept = (1.0, *sorted(settings.widths, reverse=True))
    before = [model.divergence(rows, keep) for keep in kept]  # before a checkpoint is read
    loop = Loop(model, {TEXT: windows}, settings, workplace.folder, tell)
    loop.run()
    scores = {
        "kl_before": {f"{k:g}": round(max(0.0, kl), 5) for k, kl in zip(kept, before, strict=True)},
        "kl_after": {f"{keep:g}": round(model.divergence(rows, keep), 5) for keep in kept},
        "tokens": loop.read,
        "seconds": round(loop.seconds, 1),
    }
    result = workplace.new_result()
    card = {"transform": METHOD, "widths": list(settings.widths), **scores}
    rewritten.config[CARD] = [*rewritten.config.get(CARD, ()), card]
    dtype = opened.source.plain_dtype()
    write_checkpoint(
        rewritten,
        dtype,
        result,
        lambda: copy_beside(path, result, opened.generation_config),
        model.learned.values(),
    )
    workplace.finish(result)
    return scores


def _check_widths(settings: NestedSettings, model: RewrittenModel) -> None:
    """Raises ConfigError for a width that is the whole model."""
    wholes = [model.get(name).shape[1] for name in feed_forwards(model)]
    for keep in settings.widths:
        if all(width_of(whole, keep, settings.multiple) == whole for whole in wholes):
            raise ConfigError(
                f"the width {keep:g} of {settings.target} is all of its channels in steps of "
                f"{settings.multiple}: give a smaller width or a smaller multiple."
            )
