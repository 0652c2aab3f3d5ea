"""The itemised bill of a request: what was computed, what was not, and which technique saved it.

Integers (and seconds), booked per step and shared out to the step's rows, so that the sum over all
sequences equals the steps' own totals: computed rows belong to their sequence, weight bytes are
divided among the rows of the step, and work whose result was thrown away is also booked as the
waste of whoever caused it. Savings are against one counterfactual: the same sequence alone, with no
technique.
"""

from __future__ import annotations

import msgspec


class Saving(msgspec.Struct):
    """Work that a technique made unnecessary, or (as waste) work that it caused for nothing.

    What is saved is below 0 where finding out what to leave out took more than that saved."""

    tokens: int = 0
    flops: int = 0
    bytes: int = 0

    def add(self, other: Saving) -> None:
        self.tokens += other.tokens
        self.flops += other.flops
        self.bytes += other.bytes


class Recall(msgspec.Struct):
    """How much of the attention was on the keys that a pattern visited.

    `samples` are rows, layers and key-value heads that were looked at; `mass` is the sum of the
    shares of attention, each from 0 to 1, on visited keys."""

    samples: int = 0
    mass: float = 0.0

    @property
    def share(self) -> float:
        """The mean share; 1 where nothing was looked at."""
        return self.mass / self.samples if self.samples else 1.0

    def add(self, other: Recall) -> None:
        self.samples += other.samples
        self.mass += other.mass


class Ledger(msgspec.Struct):
    """What one sequence, one request, or the whole engine has cost so far.

    `prompt_tokens` = `prompt_tokens_computed` + `prompt_tokens_reused` once the prompt is done; a
    request's prompt counts once, however many choices continue it (their saving is the fork's).
    `rows` counts every row computed, recomputation included. `weight_bytes` and `state_*_bytes` are
    bytes moved. `queue_s`, `prefill_s`, `decode_s` are wall-clock seconds spent in each phase.
    `recall` is that of each pattern of attention, of the rows that were sampled for it.
    """

    prompt_tokens: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_reused: int = 0
    generated_tokens: int = 0
    rows: int = 0
    flops: int = 0
    weight_bytes: int = 0
    state_read_bytes: int = 0
    state_written_bytes: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    saved: dict[str, Saving] = {}
    wasted: dict[str, Saving] = {}
    recall: dict[str, Recall] = {}

    def save(self, technique: str, tokens: int = 0, flops: int = 0, nbytes: int = 0) -> None:
        """Book work that `technique` avoided."""
        self.saved.setdefault(technique, Saving()).add(Saving(tokens, flops, nbytes))

    def waste(self, technique: str, tokens: int = 0, flops: int = 0, nbytes: int = 0) -> None:
        """Book work done whose result `technique` threw away."""
        self.wasted.setdefault(technique, Saving()).add(Saving(tokens, flops, nbytes))

    def add(self, other: Ledger) -> None:
        """Add another ledger's every entry to this one."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.saved, other.saved), (self.wasted, other.wasted)):
            for technique, saving in theirs.items():
                mine.setdefault(technique, Saving()).add(saving)
        for technique, recall in other.recall.items():
            self.recall.setdefault(technique, Recall()).add(recall)


_NUMBERS = tuple(f for f in Ledger.__struct_fields__ if f not in ("saved", "wasted", "recall"))


def divide(total: int, weights: list[int]) -> list[int]:
    """Share an integer out in proportion to `weights`; the parts sum to `total` exactly.

    Cumulative rounding: part i is round-down(total * prefix(i + 1)) - round-down(total *
    prefix(i)), so that no part is off by more than one.
    """
    whole = sum(weights)
    parts, seen, given = [], 0, 0
    for weight in weights:
        seen += weight
        upto = total * seen // whole if whole else 0
        parts.append(upto - given)
        given = upto
    return parts
