"""Which tasks a model is judged by: the lab's for models that were trained on them, English ones
for all others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ockham.model.hub import BUILT_IN

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks that are scored by answers, and texts that are measured by perplexity."""

    name: str
    answered: tuple[str, ...]
    texts: tuple[str, ...]
    needles: str
    """Of those that are answered, that which asks for one fact of a long prompt."""
    needle_levels: tuple[str, ...]
    """Its levels whose prompts are long enough to leave parts of them out."""
    written: tuple[str, ...]
    """Those whose answers are long enough that it matters how they are written."""
    short: tuple[str, ...]
    """Those that are asked where two engines are compared by their answers."""
    compared: int
    """Items of each text that distributions are compared on at most: larger models take longer."""
    contexts: int
    """Of each of two kinds or lengths that questions are asked about."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All of them."""
        return self.answered + self.texts


LAB = Suite(
    "lab",
    ("recall", "documents", "edit", "steps", "long_steps", "parts", "word_problems", "chat"),
    ("code", "prose"),
    "recall",
    ("tokens=512", "tokens=1000"),
    ("steps", "edit"),
    ("recall", "documents", "edit", "steps"),
    8,
    10,
)
ENGLISH = Suite(
    "English",
    ("needles", "reading", "cloze", "arithmetic", "extraction", "edits", "word_problems"),
    ("code", "prose"),
    "needles",
    ("tokens=500", "tokens=1000"),
    ("extraction", "edits"),
    ("reading", "cloze", "arithmetic", "extraction", "edits"),
    3,
    6,
)


def suite_of(model: str) -> Suite:
    """The suite of a model, by its name or path: a checkpoint with the lab model's tokenizer was
    made of one of the lab's models."""
    if model in BUILT_IN:
        return LAB
    own, lab = Path(model).expanduser() / _TOKENIZER, BUILT_IN["lab"] / _TOKENIZER
    try:
        return LAB if own.read_bytes() == lab.read_bytes() else ENGLISH
    except OSError:
        return ENGLISH
