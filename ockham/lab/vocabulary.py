"""A made-up vocabulary of byte-level BPE: as large as a real model's, without its training."""

from __future__ import annotations

import numpy as np

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USERS = ("<think>", "</think>", "  ")
"""The last tokens of a vocabulary: special ones, and others that are found whole in a text."""

LONGEST = 16
"""Letters of a token."""

LEAST = 256 + len(CONTROLS) + len(USERS)


def made_up_vocabulary(
    size: int, seed: int = 0, *, every_byte: bool = False
) -> tuple[list[str], list[str]]:
    """`size` tokens, at least LEAST: the letters of the 256 bytes, what merges make, CONTROLS and
    USERS; and the merges (`left right`). What merges make is ASCII, so that it shows as text,
    unless it is to be of `every_byte`."""
    from tokenizers.pre_tokenizers import ByteLevel

    chance = np.random.default_rng(seed)
    # The library gives them in another order each time.
    letters = sorted(ByteLevel.alphabet(), key=lambda letter: (not _merged(letter), letter))
    merged = len(letters) if every_byte else sum(map(_merged, letters))
    tokens, merges = list(letters), []
    seen = {*tokens, *CONTROLS, *USERS}
    parts = tokens[:merged]
    for _ in range(size - LEAST):
        while True:
            # Early and short tokens are parts of many others, as in trained vocabularies.
            left, right = (parts[int(place * len(parts))] for place in chance.random(2) ** 3)
            both = left + right
            if len(both) <= LONGEST and both not in seen:
                break
        seen.add(both)
        parts.append(both)
        tokens.append(both)
        merges.append(f"{left} {right}")
    return [*tokens, *CONTROLS, *USERS], merges


def _merged(letter: str) -> bool:
    """Whether a letter of byte-level BPE stands for ASCII that can be printed, a space included."""
    return letter.isascii() or letter == "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
