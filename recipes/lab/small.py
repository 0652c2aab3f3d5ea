"""`lab-small`: a model that has learned one of the lab model's skills, and half of that, for
searches in which a small model writes beside it."""

from __future__ import annotations

import json
from pathlib import Path

from ockham.lab.tasks import TASKS
from ockham.training.settings import Settings

TASK = "steps"
_ITEMS, _HELD_OUT = (11, 24_000), (12, 300)
"""Seeds, and how many."""


def small_texts(directory: Path) -> tuple[Path, Path]:
    """Write what it learns from, and what judges it; the two files."""
    directory.mkdir(parents=True, exist_ok=True)
    train, judge = directory / "small.jsonl", directory / "small_held_out.jsonl"
    for path, split, (seed, items) in ((train, "train", _ITEMS), (judge, "test", _HELD_OUT)):
        with path.open("w", encoding="utf-8") as file:
            for index in range(items):
                item = TASKS[TASK].item(seed, index, split)  # type: ignore[arg-type]
                messages = [*item.messages, {"role": "assistant", "content": item.answer}]
                file.write(json.dumps({"messages": messages}) + "\n")
    return train, judge


def small_settings(data: Path, held_out: Path, out: Path) -> Settings:
    """What `ockham draft train lab OUT` is told."""
    return Settings(
        target="lab",
        method="draft_model",
        data=(data,),
        held_out=(held_out,),
        out=out,
        tokens=2_500_000,
        output_tokens=100_000,
        text_share=0.9,
        context=256,
        layers=4,
        hidden_size=128,
    )
