"""Sums of low rank beside rounded weights, trained: `ockham train correction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.core.registry import first
from ockham.kernels.corrected import CorrectedLinear
from ockham.model.checkpoint.opening import OpenedModel
from ockham.model.checkpoint.prequantised.find import quantization_config
from ockham.model.converting import convert
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.loading import named_format
from ockham.model.packed.packing import Packer
from ockham.model.program.compile import compile_program
from ockham.model.program.description import read_config
from ockham.model.program.unequal import WITHOUT_ATTENTION
from ockham.model.rewriting.model import RewrittenModel
from ockham.model.rewriting.writing import CARD
from ockham.training.checkpoints import open_plain
from ockham.training.distilling import (
    HELD_OUT_WINDOWS,
    DistilSettings,
    read_pieces_for,
    rows_to_fit,
)
from ockham.training.documents import Pieces
from ockham.training.extra import require_extra
from ockham.training.windows import Windows
from ockham.training.workplace import Workplace

Tell = Callable[[str], None]

METHOD = "correction"
FITTED_TOKENS = 8192
"""Of the text, what weights and the first sums are fitted to."""


@dataclass(frozen=True)
class CorrectionSettings(DistilSettings):
    """The weights of `target` are rounded to a format (`quantization`), or to those that a mix has
    for tensors (`mix`, by their names). Sums of `rank` beside them are trained, where the mix has
    none of its own."""

    rate: float = 1e-3
    quantization: str | None = None
    mix: tuple[tuple[str, str], ...] = ()
    rank: int = 16
    method: str = METHOD

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, got {self.rank}.")
        if self.quantization is None:
            if not self.mix:
                raise ConfigError(
                    "nothing is rounded: name a quantization, such as int4:64, or a directory with "
                    "a mix (--mix-of)."
                )
            return
        chosen = named_format(self.quantization)
        if chosen is None or chosen.dtype is not None:
            raise ConfigError(
                f"{self.quantization} rounds nothing that a sum could make good: name a format of "
                "fewer bits, such as int4:64."
            )

    @property
    def closed(self) -> str:
        """The correction that training starts from."""
        found = first("correction", lambda each: bool(each.cls.needs_text))  # type: ignore[attr-defined]
        assert found is not None, "there is one"
        return f"{found.name}:rank={self.rank}"


def read_mix(directory: Path) -> tuple[tuple[str, str], ...]:
    """The mix of a directory that `ockham compress`, or `ockham convert --mix`, wrote. Raises
    ConfigError for one that has none, or whose model was rewritten before: its tensors have other
    shapes and values."""
    config = read_config(directory)
    quantised = quantization_config(config) or {}
    mix = quantised.get("mix")
    if not isinstance(mix, dict) or not mix:
        raise ConfigError(
            f"{directory} has no mix of formats: name one that ockham compress wrote, or a "
            "quantization."
        )
    if config.get(CARD) or WITHOUT_ATTENTION in config:
        raise ConfigError(
            f"{directory} was made of a model that had been rewritten or made smaller, and its mix "
            "is not for the original; compress it without --widths and --drop."
        )
    return tuple((str(name), str(form)) for name, form in mix.items())


def train_correction(
    settings: CorrectionSettings, tell: Tell = lambda line: None
) -> dict[str, Any]:
    """Round a model, train sums of low rank to make good what that takes, and write both to the
    directory `settings.out`. Gives the mean KL from the model on held-out text of the rounded
    weights alone, with the sums that a closed form gives, and with the trained ones.

    A training that was interrupted goes on when it is called again with the same settings. Raises
    ConfigError for settings that cannot be, and ModelError for files that cannot be read.
    """
    path = resolve(settings.target)
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training a correction of {settings.target} needs text: name .txt or .jsonl files "
            "with --data, of the kind that will be read."
        )
    workplace = Workplace(settings, path, tell)
    require_extra()
    pieces = read_pieces_for(path, settings.data, settings.held_out, settings.seed)
    opened = open_plain(path, "the model to round")
    context = min(settings.context, opened.description.max_position_embeddings)
    opened.source.close()
    windows = Windows((each.tokens for each in pieces.train), context, settings.seed, 0)
    scores: dict[str, Any] = {}

    def adjust(opened: OpenedModel, packer: Packer) -> Mapping[str, Any]:
        found = _train(settings, opened, packer, pieces, windows, workplace.folder, tell)
        scores.update(found)
        return {"trained": found}

    with workplace.begin():
        result = workplace.new_result()
        convert(
            EngineConfig(model=str(path), quantization=settings.quantization),
            result,
            tell,
            rows_to_fit(windows, FITTED_TOKENS),
            mix=dict(settings.mix),
            correction=settings.closed,
            adjust=adjust,
        )
        workplace.finish(result)
    return scores


def _train(
    settings: CorrectionSettings,
    opened: OpenedModel,
    packer: Packer,
    pieces: Pieces,
    windows: Windows,
    folder: Path,
    tell: Tell,
) -> dict[str, Any]:
    """Train the sums of the packer's fitted matrices, and leave them there."""
    import torch

    from ockham.training.decoder import Decoder
    from ockham.training.loop import Loop
    from ockham.training.student import TEXT
    from ockham.training.sums import Compensated, RoundedDecoder

    if not any(isinstance(each, CorrectedLinear) for each in packer.fitted.values()):
        raise ConfigError(
            f"{settings.target} has no projections of attention or dense feed-forwards that "
            "are rounded, and sums stand beside those only."
        )
    torch.manual_seed(settings.seed)
    # A loader takes what is fitted out, and it will be written later.
    loaded = opened.source.load(replace(packer, fitted=dict(packer.fitted)))
    compile_program(opened.description, loaded, opened.description.max_position_embeddings)
    rewritten = RewrittenModel(opened, tell)
    model = Compensated(RoundedDecoder(rewritten, loaded.packed.matrices), Decoder(rewritten))
    held_out = Windows(
        (each.tokens for each in next(iter(pieces.held_out.values()))),
        windows.context,
        settings.seed,
        1,
    )
    rows = torch.from_numpy(held_out.batch(0, HELD_OUT_WINDOWS))
    before = model.divergence(rows, adds=False), model.divergence(rows)
    closed = {name: each.clone() for name, each in model.state_dict().items()}
    loop = Loop(model, {TEXT: windows}, settings, folder, tell)
    loop.run()
    model.write()
    trained = model.divergence(rows)
    if not trained < before[1]:
        tell(
            "training made nothing better on held-out text, so the sums in closed form are kept; "
            "give it more tokens, or a lower --rate"
        )
        model.load_state_dict(closed)
        model.write()
    return {
        "kl_rounded": round(before[0], 5),
        "kl_closed_form": round(before[1], 5),
        "kl_trained": round(trained, 5),
        "kept": "trained" if trained < before[1] else "closed form",
        "rank": settings.rank,
        "tokens": loop.read,
        "seconds": round(loop.seconds, 1),
    }
