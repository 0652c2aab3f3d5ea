"""Places for sequences that keep what they hold, as llama.cpp's server has them. No engine here."""

from __future__ import annotations

from collections.abc import Callable

SLOTS, SIMILARITY = 4, 0.1
"""The defaults of llama.cpp's server for `--parallel` and `--slot-prompt-similarity`."""


class Slots:
    """The places for sequences, given out by the rule of llama.cpp's server: the free one that
    shares the longest prefix with the prompt, if that is more than a tenth of the prompt, else the
    one that was free for the longest time. What a prompt does not share is dropped."""

    def __init__(self, count: int, reuse: bool, drop: Callable[[int, int], None]) -> None:
        """`drop(slot, position)` forgets what a slot holds from a position on. Without `reuse` a
        slot that is given back holds nothing."""
        self._reuse, self._drop = reuse, drop
        self._free: dict[int, list[int]] = {slot: [] for slot in range(count)}

    def take(self, prompt: list[int]) -> tuple[int, int]:
        """A slot, and how many tokens of the prompt it holds (never all: the last one has to be
        computed for its logits)."""
        common = {slot: _common(held, prompt) for slot, held in self._free.items()}
        slot = max(common, key=lambda each: common[each])
        if common[slot] <= SIMILARITY * len(prompt):
            slot = next(iter(self._free))
        del self._free[slot]
        kept = min(common[slot], len(prompt) - 1)
        self._drop(slot, kept)
        return slot, kept

    def give_back(self, slot: int, holds: list[int]) -> None:
        """Free a slot whose state is that of `holds`."""
        self._free[slot] = holds if self._reuse else []


def _common(held: list[int], prompt: list[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(held, prompt, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(held), len(prompt)))
