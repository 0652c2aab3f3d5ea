"""The models, and the prompts that they are given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import Folder
from benchmarks.peers.workloads import prompts
from ockham.lab.tasks.shared import QUESTIONS, Question, shared

CONTEXT_TOKENS = 16384
"""Of the random checkpoint, whose own limit is too low for these prompts."""
CHAT = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
ASK = "{context}\n\n{question} Answer in one short sentence."

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Workload:
    """One prompt of about so many tokens a round, and new tokens after it. `checkpoint`: "long"
    for the random one in the shape of TinyLlama, "real" for SmolLM2 (`Folder.checkpoint_of`).
    `budget`: tokens that stay where not all do. `imposed_share`: of the blocks that are visited,
    for a model whose attention says nothing. Of one that is not `timed` the answers alone count."""

    name: str
    title: str
    checkpoint: str
    tokens: int
    new_tokens: int
    budget: int
    imposed_share: float | None = None
    timed: bool = True

    @property
    def query_width(self) -> int:
        """Layers times heads times their dimension."""
        return 30 * 9 * 64 if self.asks else 22 * 32 * 64

    @property
    def asks(self) -> bool:
        """Whether an answer can be right."""
        return self.checkpoint == "real"


WORKLOADS = (
    Workload("smollm2-8000", "SmolLM2-135M, 8,000 tokens", "real", 8000, 64, 2048),
    Workload("smollm2-4000", "SmolLM2-135M, 4,000 tokens", "real", 4000, 64, 2048),
    Workload("random-8000", "1.1B, random, 8,000 tokens", "long", 8000, 64, 2048, 0.5),
    Workload("random-4000", "1.1B, random, 4,000 tokens", "long", 4000, 64, 2048, 0.5),
    Workload("answers", "Answers of SmolLM2-135M", "real", 2000, 24, 512, timed=False),
)


@dataclass(frozen=True)
class Prompt:
    """Tokens, and the question that they end with."""

    tokens: list[int]
    question: Question | None


def prompt(workload: Workload, round_: int, encode: Encode) -> Prompt:
    """The prompt of a round, of so many tokens at most: a pure function of the arguments. Real ones
    are documentation in which five facts are hidden, one of which is asked for."""
    if not workload.asks:
        (tokens,) = prompts(1, workload.tokens, f"{workload.name}-{round_}")
        return Prompt(tokens, None)
    size = workload.tokens
    while True:
        found = shared("shared-needles", 0, round_, size, lambda text: len(encode(text)))
        question = found.questions[round_ % QUESTIONS]
        text = ASK.format(context=found.context, question=question.text)
        tokens = encode(CHAT.format(text=text))
        if len(tokens) <= workload.tokens:
            return Prompt(tokens, question)
        # Parts that are counted one by one take more tokens together.
        size -= len(tokens) - workload.tokens


def make_long_checkpoint(place: Folder) -> None:
    """The random checkpoint once more, with a longer context; its files have second names."""
    source, target = place.checkpoint, place.checkpoint_of("long")
    whole = target / "config.json"
    if whole.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    for each in source.iterdir():
        if each.name != whole.name and not (target / each.name).exists():
            os.link(each, target / each.name)
    config = json.loads((source / whole.name).read_text())
    config |= {"max_position_embeddings": CONTEXT_TOKENS}
    _write(whole, json.dumps(config, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)
