"""What names weights by their content: a digest of every packed byte, at the speed of memory.

Cryptographic hashes run at about 1 GB/s here, which would be most of the time of a start. Each
block of 64 Ki words of an array is therefore compressed by a multilinear hash, sum(word_i * key_i)
mod 2^64 with fixed pseudo-random odd keys (Carter and Wegman 1979): one changed word always changes
it, several do with a probability near 1. The sums, and whatever must count exactly, go through
BLAKE2b. This tells weights apart and finds damage; it is no protection against a forger.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Array
from ockham.kernels.memory import as_bytes
from ockham.kernels.native import core

KEY_WORDS = 1 << 16
BLOCK_BYTES = 8 * KEY_WORDS
"""Bytes that one sum is over; an array that is digested in pieces is cut at multiples of it."""


@functools.cache
def _keys() -> npt.NDArray[np.uint64]:
    """SplitMix64 of 1, 2, ..., made odd (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, KEY_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: npt.NDArray[np.uint64] = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return keys


def block_sums(data: npt.NDArray[np.uint8], pool: Any = None) -> bytes:
    """The sums of the blocks of flat bytes, and as they are the few that make no whole word.

    `pool`: threads of the native core to share the work; without it one thread does it."""
    whole = len(data) // 8 * 8
    words, keys = data[:whole].view(np.uint64), _keys()
    sums = np.empty(-(-len(words) // KEY_WORDS), np.uint64)
    if core is None:
        for block in range(len(sums)):
            part = words[block * KEY_WORDS : (block + 1) * KEY_WORDS]
            sums[block] = np.dot(part, keys[: len(part)])
    else:
        core.digest_words(pool or core.ThreadPool(1), words, keys, sums)
    return sums.tobytes() + data[whole:].tobytes()


def array_digest(nbytes: int, sums: Iterable[bytes]) -> str:
    """The digest of an array of `nbytes` bytes from the `block_sums` of its pieces, in order."""
    hashed = hashlib.blake2b(nbytes.to_bytes(8, "little"), digest_size=16)
    for each in sums:
        hashed.update(each)
    return hashed.hexdigest()


def digest_of(array: Array, pool: Any = None) -> str:
    """The digest of a contiguous array's bytes."""
    data = as_bytes(array)
    return array_digest(len(data), [block_sums(data, pool)])


def weights_digest(matrices: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """The digest of a model's packed weights from what is known of its matrices, and of all arrays
    with their digests, by name. The order of either does not count."""
    encoded = json.dumps([matrices, arrays], sort_keys=True).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()
