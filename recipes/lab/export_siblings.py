"""Measuring the lab model's siblings, and writing them with their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from recipes.lab.agreement import Agreement, measure_agreement
from recipes.lab.evaluate import Score, evaluate
from recipes.lab.export import export
from recipes.lab.lora import export_adapter, is_adapter
from recipes.lab.model import LabModel
from recipes.lab.recursive import RecursiveModel
from recipes.lab.sibling_cards import (
    Scores,
    adapter_card,
    agreement_row,
    drafter_card,
    experts_card,
    recursive_card,
)
from recipes.lab.train import Trainer

SOURCES = ("code", "prose")
_CONTEXT = 512
_WINDOWS = 64

TaskScores = Sequence[Mapping[str, Any]]


def export_sibling(
    name: str,
    trainer: Trainer,
    tokenizer: Tokenizer,
    dense: LabModel,
    lab: Path,
    before: TaskScores,
    after: TaskScores,
    out: Path,
) -> None:
    """Measure what was trained, beside the ``dense`` model of the folder ``lab``, and write it.

    ``before`` and ``after`` are the scores of tasks that ``ockham eval --json`` reported of the
    dense model and of the sibling.
    """
    model, plan = trainer.model, trainer.plan
    round_to_bfloat16(model)
    if plan.distilled:
        streams = trainer.streams.held_out
        found = agreements(dense, model, lab, {source: streams[source] for source in SOURCES})
        export(model, tokenizer, drafter_card(trainer, found), out)
    elif plan.lora_rank:
        card = adapter_card(trainer, name, perplexities(dense, trainer), before, after)
        export_adapter(model, plan.lora_rank, plan.lora_alpha, "lab", plan.start_sha256, out)
        (out / "README.md").write_text(card)
    elif isinstance(model, RecursiveModel):
        depths = {"of the lab model": perplexities_of(dense, trainer)}
        for depth in range(1, model.shape.passes + 1):
            with model.at_depth(depth):
                depths[f"{depth} for every row"] = perplexities_of(model, trainer)
        depths["as the rows choose"] = perplexities_of(model, trainer)
        streams = trainer.streams.held_out
        active = {source: model.shares(windows_of(streams[source])) for source in SOURCES}
        export(model, tokenizer, recursive_card(trainer, depths, active, after), out)
    else:
        used = experts_used(model, trainer.streams.held_out["code"])
        card = experts_card(trainer, perplexities(dense, trainer), used, after)
        export(model, tokenizer, card, out)


@torch.no_grad()
def round_to_bfloat16(model: LabModel) -> None:
    """What is measured is what is shipped; adapters are shipped in float32."""
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            parameter.copy_(parameter.bfloat16())


def agreements(
    dense: LabModel, drafter: LabModel, lab: Path, streams: Mapping[str, npt.NDArray[np.uint16]]
) -> dict[str, Agreement]:
    """For each stream of held-out text, printed as rows of the card."""
    found = {}
    for source, stream in streams.items():
        found[source] = each = measure_agreement(dense, drafter, lab, stream)
        print(agreement_row(source, each))
    return found


def perplexities(dense: LabModel, trainer: Trainer) -> Scores:
    """Of the dense model and of the one that was trained, on held-out text."""
    streams = trainer.streams.held_out
    return {
        source: (
            evaluate(dense, streams[source], _CONTEXT, most_windows=_WINDOWS),
            evaluate(trainer.model, streams[source], _CONTEXT, most_windows=_WINDOWS),
        )
        for source in SOURCES
    }


def perplexities_of(model: LabModel, trainer: Trainer) -> dict[str, Score]:
    """Of one model, on held-out text."""
    return {
        source: evaluate(model, trainer.streams.held_out[source], _CONTEXT, most_windows=_WINDOWS)
        for source in SOURCES
    }


def windows_of(stream: npt.NDArray[np.uint16], windows: int = 48) -> torch.Tensor:
    """The first windows of a stream, (windows, T)."""
    rows = stream[: len(stream) // _CONTEXT * _CONTEXT].reshape(-1, _CONTEXT)[:windows]
    return torch.from_numpy(rows.astype(np.int64))


@torch.no_grad()
def experts_used(model: LabModel, stream: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """How many tokens of a stream go to each expert of each layer: (layers, experts)."""
    used = []
    for part in torch.split(windows_of(stream), 8):
        model.hidden(part)
        used.append([mixture.used.tolist() for mixture in model.mixtures()])
    return np.sum(used, axis=0)
