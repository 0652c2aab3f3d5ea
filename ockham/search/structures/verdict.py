"""What the model answers to a question of yes or no, by the probabilities of its next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import NOTHING, Observer, OwnRows, Seen, Wants


class Verdict(Observer):
    """Reads the row after which the first token of a branch is drawn."""

    def __init__(self, yes: frozenset[int], no: frozenset[int]) -> None:
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        self._wants = Wants(logits=True)
        self.value: float | None = None
        """The probability of yes beside that of no; None before it is known."""

    def wants(self, own: OwnRows) -> Wants:
        return self._wants if own.choosing and self.value is None else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        if self.value is None:
            self.value = shares(seen.logits[0], self._yes, self._no)


def shares(logits: Floats, yes: Sequence[int], no: Sequence[int]) -> float:
    """The probability of the tokens `yes` beside that of the tokens `no`: (vocabulary,) -> one."""
    if not len(yes) or not len(no):
        return 0.0
    values = logits.astype(np.float64)
    for_, against = np.logaddexp.reduce(values[yes]), np.logaddexp.reduce(values[no])
    return float(1.0 / (1.0 + np.exp(np.clip(against - for_, -700, 700))))


def first_tokens(encode: Callable[[str], Sequence[int]], word: str) -> frozenset[int]:
    """The tokens with which a word may begin, with a space before it or a capital or not."""
    plain = word.strip()
    forms = {plain, plain.lower(), plain.capitalize(), plain.upper()}
    return frozenset(
        tokens[0] for form in forms for text in (form, f" {form}") if (tokens := encode(text))
    )
