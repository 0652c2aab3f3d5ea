"""Sampling noise as a pure function of (seed, stream, position, token id).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a
counter-based generator: its output depends on nothing but its key and counter, so a token's noise
is the same whatever else was sampled before it, in whichever batch. The key is the seed; the
counter is (token id // 4, position, stream, domain), and word `token id % 4` of the output belongs
to the token. The sampler, a drafter that knows the noise, and a kernel all draw the same numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SAMPLING_DOMAIN = 0
"""The counter's last word: keeps other users of the generator apart from the sampler."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(
    counter: tuple[npt.NDArray[np.uint64], ...], key: tuple[int, int]
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Ten rounds of Philox on four words of 32 bits, each held in the low half of a uint64.

    `counter` is four arrays that broadcast together, `key` two words; returns four arrays.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform_words(
    seed: int, stream: int, position: int, tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """One 32-bit word for each of `tokens` (any shape, ids from 0)."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    wanted = tokens >> 2
    first, last = (int(wanted.min()), int(wanted.max())) if wanted.size else (0, -1)
    if last - first < 2 * wanted.size:  # dense: cheaper to draw every block than to sort
        blocks, block_of_token = np.arange(first, last + 1), wanted - first
    else:
        blocks, block_of_token = np.unique(wanted, return_inverse=True)
    shape = blocks.shape
    words = philox4x32(
        (
            blocks.astype(np.uint64),
            np.full(shape, position, np.uint64),
            np.full(shape, stream, np.uint64),
            np.full(shape, SAMPLING_DOMAIN, np.uint64),
        ),
        key,
    )
    table = np.stack(np.broadcast_arrays(*words))  # (4, blocks)
    chosen: npt.NDArray[np.uint64] = table[tokens & 3, block_of_token.reshape(tokens.shape)]
    return chosen


def gumbel(
    seed: int, stream: int, position: int, tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of each of `tokens`; argmax(log p + noise) is a sample of p."""
    return gumbel_of(uniform_words(seed, stream, position, tokens))


def gumbel_of(words: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float64]:
    """The standard Gumbel noise that words of 32 bits stand for."""
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32  # in (0, 1), never 0 or 1
    return -np.log(-np.log(uniform))
