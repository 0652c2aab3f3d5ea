"""The lab model whose first channels are smaller models: what `ockham train nested` is told, and
the card of what came out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ockham.training.nested import NestedSettings, train_nested

SEED = 1
PLAN: dict[str, Any] = {
    "widths": (0.25, 0.5),
    "tokens": 819_200,
    "context": 512,
    "batch_tokens": 1024,
    "rate": 1e-3,
    "data_weight": 0.25,
}
"""Beside the texts of texts.py (`NESTED_MIX`)."""

MODELS = ("lab", "1", "0.5", "0.25", "untrained-0.5", "untrained-0.25")
"""Reports of `ockham eval --json` that the card compares, by the names of their files: the lab
model, each width, and the widths of the lab model with its channels sorted and nothing trained."""

Reports = Mapping[str, Mapping[str, Any]]


def train_lab_nested(data: Path, out: Path, tell: Callable[[str], None] = print) -> None:
    """Train it, and write it to the new directory ``out``."""
    tell(
        json.dumps(train_nested(NestedSettings("lab", out, data=(data,), seed=SEED, **PLAN), tell))
    )


def install(result: Path, scores: Path, folder: Path) -> None:
    """Put what was trained, with its card, into the new ``folder`` of the package; the folder
    ``scores`` has the reports of `MODELS`."""
    reports = {name: json.loads((scores / f"{name}.json").read_text()) for name in MODELS}
    trained = json.loads((result / "config.json").read_text())["ockham_transforms"][-1]
    shutil.copytree(result, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(card(trained, reports), encoding="utf-8")


def card(trained: Mapping[str, Any], reports: Reports) -> str:
    """The model card, of what config.json says of the training."""
    divergences = [
        f"| {width} | {abs(trained['kl_before'][width]):.4f} | {trained['kl_after'][width]:.4f} |"
        for width in trained["kl_after"]
    ]
    return f"""---
language: [en]
library_name: transformers
pipeline_tag: text-generation
base_model: lab
tags: [python, llama, tiny, nested]
---

# The lab model with nested widths

The lab model, trained so that the first quarter and the first half of each feed-forward's channels
are models too. `ockham train nested` made it. Its shapes are the lab model's, and its weights are
in bfloat16; `ockham convert lab-nested OUT --transform width:0.5` takes a width out.

## Skills

Measured by `ockham eval` with greedy decoding, on the same items of the test split for all, and the
share of answers that a program finds right. *untrained* are widths of the lab model itself, its
channels sorted by what they add to the output (`--transform nest --transform width:0.5`). The full
width is not the lab model: it has learned to share its channels, which costs it answers.

| task | items | lab | full | half | quarter | untrained half | untrained quarter |
|---|---|---|---|---|---|---|---|
{chr(10).join(_rows(reports))}

## Held-out text

KL divergence from the lab model, in nats a token, on text that nothing was trained on.

| width | sorted | trained |
|---|---|---|
{chr(10).join(divergences)}

## Training

- **Loss:** at each step, at full width and at one of the others, drawn anew: the divergence from
  the lab model, and {PLAN["data_weight"]:g} times the negative log-likelihood of the text.
- **Tokens read:** {trained["tokens"]:,} in {trained["seconds"]:,.0f} seconds of one thread beside \
other work,
  of the texts of `recipes/lab`: Python's standard library (PSF-2.0) and exercises.
- **Optimiser:** Muon at {4 * PLAN["rate"]:g} for the layers' matrices, AdamW at {PLAN["rate"]:g} \
for the rest; linear decay
  to zero over the second half.
- **Seed:** {SEED}. `python -m recipes.lab nested` trains with these settings.
"""


def _rows(reports: Reports) -> list[str]:
    """A row for each task whose answers are right or wrong, and one for all."""
    whole = {
        name: {s["source"]: s for s in report["scores"] if "score" in s and not s.get("level")}
        for name, report in reports.items()
    }
    tasks = whole["lab"]
    shares = {task: [whole[name][task]["score"] for name in MODELS] for task in tasks}
    counts = {task: own["items"] for task, own in tasks.items()}
    total = sum(counts.values())
    shares["all"] = [
        sum(counts[task] * shares[task][number] for task in tasks) / total
        for number in range(len(MODELS))
    ]
    counts["all"] = total
    return [
        f"| {task} | {counts[task]} | " + " | ".join(f"{share:.1%}" for share in own) + " |"
        for task, own in shares.items()
    ]
