"""The counter-based generator against its published vectors, and what the sampler builds on."""

import numpy as np
import pytest

from ockham.core.noise import gumbel, philox4x32, uniform_words

# Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = philox4x32(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == expected


def test_a_tokens_noise_does_not_depend_on_which_other_tokens_draw():
    everything = uniform_words(7, 3, 11, np.arange(1000))
    some = np.array([999, 0, 5, 5, 512, 3])
    assert (uniform_words(7, 3, 11, some) == everything[some]).all()
    few = np.array([[2, 900], [901, 3]])
    assert (uniform_words(7, 3, 11, few) == everything[few]).all()
    assert uniform_words(7, 3, 11, np.empty(0, np.int64)).shape == (0,)


def test_seed_stream_and_position_each_change_the_noise():
    tokens = np.arange(64)
    base = gumbel(1, 0, 0, tokens)
    for other in (gumbel(2, 0, 0, tokens), gumbel(1, 1, 0, tokens), gumbel(1, 0, 1, tokens)):
        assert (base != other).all()
    high_half = gumbel(1 + (1 << 40), 0, 0, tokens)
    assert (base != high_half).all()


def test_gumbel_noise_has_the_moments_of_its_distribution():
    noise = np.concatenate([gumbel(5, 0, p, np.arange(4096)) for p in range(25)])
    standard_error = np.pi / np.sqrt(6 * len(noise))
    assert abs(noise.mean() - 0.5772156649) < 5 * standard_error
    assert abs(noise.var() - np.pi**2 / 6) < 0.05
