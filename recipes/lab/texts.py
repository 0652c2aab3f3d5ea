"""The recipe's text as files for `ockham draft train`: one for training, and one for each source of
what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ockham.lab.tasks import TASKS
from ockham.lab.tasks.item import Split
from recipes.lab.corpus import Document

_PART_CHARS = 4_000
_HELD_OUT = 96
_ASKED = ("recall", "documents", "edit", "steps", "chat")

Line = dict[str, object]


@dataclass(frozen=True)
class Mix:
    """How many parts of documents of each source, and how many exercises, whose questions are so
    long at most."""

    parts: Mapping[str, int]
    exercises: int
    longest_question_chars: int


DRAFTERS_MIX = Mix({"code": 2_400, "prose": 600, "chat": 600}, 2_400, 1_200)
NESTED_MIX = Mix({"code": 700, "prose": 150, "chat": 150}, 5_000, 4_000)


def write_texts(
    documents: Sequence[Document], seed: int, out: Path, mix: Mix = DRAFTERS_MIX
) -> tuple[Path, list[Path]]:
    """Write train.jsonl, and of what training never reads code.jsonl, prose.jsonl and
    exercises.jsonl, into the folder ``out``; their paths. Exercises are of the train split, the
    held-out ones of the test split."""
    rng = Random(f"texts {seed}")
    out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for source, most in mix.parts.items():
        lines += _some(_parts(documents, source, held_out=False), most, rng)
    lines += _exercises(mix.exercises, "train", rng, mix)
    rng.shuffle(lines)
    held_out = {
        source: _some(_parts(documents, source, held_out=True), _HELD_OUT, rng)
        for source in ("code", "prose")
    }
    held_out["exercises"] = list(_exercises(_HELD_OUT, "test", rng, mix))
    paths = [_write(out / f"{name}.jsonl", each) for name, each in held_out.items()]
    return _write(out / "train.jsonl", lines), paths


def _parts(documents: Sequence[Document], source: str, *, held_out: bool) -> list[Line]:
    return [
        {"text": document.text[start : start + _PART_CHARS]}
        for document in documents
        if document.source == source and document.held_out == held_out
        for start in range(0, len(document.text), _PART_CHARS)
    ]


def _some(lines: list[Line], most: int, rng: Random) -> list[Line]:
    return rng.sample(lines, min(most, len(lines)))


def _exercises(number: int, split: Split, rng: Random, mix: Mix) -> Iterator[Line]:
    made = 0
    while made < number:
        task = TASKS[_ASKED[made % len(_ASKED)]]
        item = task.item(rng.randrange(1 << 30), rng.randrange(1 << 30), split)
        chars = sum(len(message["content"]) for message in item.messages)
        if chars <= mix.longest_question_chars:
            made += 1
            answer = {"role": "assistant", "content": item.answer}
            yield {"messages": [*item.messages, answer]}


def _write(path: Path, lines: Sequence[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
