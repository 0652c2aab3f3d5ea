"""Training routers that choose how wide a row's feed-forwards are: `ockham train gate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ockham.core.errors import ConfigError
from ockham.model.checkpoint.gate_files import WidthRouters, write_routers
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.rewriting.model import RewrittenModel
from ockham.training.checkpoints import open_plain
from ockham.training.distilling import HELD_OUT_WINDOWS, DistilSettings, read_pieces_for
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]

METHOD = "gate"


@dataclass(frozen=True)
class GateSettings(DistilSettings):
    """Routers for `target` shall choose among `widths`, shares of each feed-forward's first neurons
    in steps of 16, so that rows run the share `budget` of all neurons on average. The model itself
    stays as it is."""

    tokens: int = 100_000
    context: int = 256
    batch_tokens: int = 2048
    rate: float = 3e-3
    widths: tuple[float, ...] = (0.0, 0.25, 1.0)
    budget: float = 0.5
    method: str = METHOD

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths)):
            raise ConfigError(
                "widths are at least two shares of the neurons, ascending, such as 0,0.25,1; got "
                f"{', '.join(f'{width:g}' for width in self.widths)}."
            )
        if not all(0.0 <= width <= 1.0 for width in self.widths):
            raise ConfigError("widths are shares of the neurons, from 0 to 1.")
        if not self.widths[0] < self.budget < self.widths[-1]:
            raise ConfigError(
                f"budget is a share between the smallest and the largest width, {self.widths[0]:g} "
                f"and {self.widths[-1]:g}; got {self.budget:g}."
            )
        if not math.isfinite(self.rate) or self.rate <= 0:
            raise ConfigError(f"rate must be above 0 and finite, got {self.rate}.")


def train_gate(settings: GateSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Train routers and write them to the directory `settings.out`. Gives the mean KL from the
    whole model on held-out text, of the routers and of every width for all rows, with the share of
    the neurons that ran.

    A training that was interrupted goes on when it is called again with the same settings. Raises
    ConfigError for settings that cannot be, and ModelError for files that cannot be read.
    """
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training routers for {settings.target} needs text: name .txt or .jsonl files with "
            "--data, of the kind that will be read."
        )
    workplace = Workplace(settings, path, tell)
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    opened = open_plain(path, "the model that the routers are for")
    try:
        with workplace.begin():
            return _train(settings, opened, pieces, workplace, tell)
    finally:
        opened.source.close()


def _train(
    settings: GateSettings,
    opened: OpenedModel,
    pieces: Pieces,
    workplace: Workplace,
    tell: Tell,
) -> dict[str, Any]:
    import torch

    from ockham.training.decoder import Decoder
    from ockham.training.loop import Loop
    from ockham.training.routing import Routed
    from ockham.training.student import TEXT
    from ockham.training.windows import Windows

    torch.manual_seed(settings.seed)
    context = min(settings.context, opened.description.max_position_embeddings)
    windows = Windows((each.tokens for each in pieces.train), context, settings.seed, 0)
    first = next(iter(pieces.held_out.values()))
    held_out = Windows((each.tokens for each in first), context, settings.seed, 1)
    model = Routed(Decoder(RewrittenModel(opened, tell)), settings.widths, settings.budget)
    rows = torch.from_numpy(held_out.batch(0, HELD_OUT_WINDOWS))
    loop = Loop(model, {TEXT: windows}, settings, workplace.folder, tell)
    loop.run()
    kl, share = model.measured(rows)
    even = {width: model.measured(rows, choice) for choice, width in enumerate(settings.widths)}
    scores: dict[str, Any] = {
        "kl": round(kl, 5),
        "share": round(share, 4),
        "kl_of_widths": {f"{width:g}": round(found[0], 5) for width, found in even.items()},
        "chosen": [[round(each, 4) for each in layer] for layer in model.chosen(rows)],
        "tokens": loop.read,
        "seconds": round(loop.seconds, 1),
    }
    result = workplace.new_result()
    trained = {"target": settings.target, "seed": settings.seed, **scores}
    write_routers(result, WidthRouters(*model.routers(), trained))
    workplace.finish(result)
    return scores
