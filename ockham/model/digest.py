"""A fast digest of gigabytes of weights: every byte counts, at the speed of memory.

Cryptographic hashes run at about 1 GB/s here, which would double the time to load a model. Each
block of bytes is therefore compressed by a multilinear hash, sum(word_i * key_i) mod 2^64 with
fixed pseudo-random odd keys (Carter and Wegman 1979): one changed word always changes it, several
do with a probability near 1. The sums, the blocks' lengths and whatever must count exactly go
through BLAKE2b. This tells checkpoints apart; it does not protect against someone who forges one.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt

KEY_WORDS = 1 << 16


@functools.cache
def _keys() -> npt.NDArray[np.uint64]:
    """SplitMix64 of 1, 2, ..., made odd (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, KEY_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: npt.NDArray[np.uint64] = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return keys


class ContentDigest:
    """A digest of blocks of bytes in the order in which they are given."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update_exactly(self, data: bytes) -> None:
        """Add a few bytes through BLAKE2b itself."""
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def update(self, block: memoryview) -> None:
        """Add a block of weights."""
        tail = len(block) % 8
        words = np.frombuffer(block[: len(block) - tail], np.uint64)
        keys = _keys()
        sums = [
            int(np.dot(part, keys[: len(part)]))
            for part in (words[i : i + KEY_WORDS] for i in range(0, len(words), KEY_WORDS))
        ]
        packed = np.array(sums, np.uint64).tobytes() + bytes(block[len(block) - tail :])
        self.update_exactly(packed)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
