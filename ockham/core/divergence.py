"""How far one distribution over tokens is from another."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Doubles, Floats


def kl_nats(baseline: Floats, candidate: Floats) -> Doubles:
    """Of two sets of logits, (positions, vocabulary): KL(baseline || candidate) at each position in
    nats, summed in float64."""
    before, after = _log_softmax(baseline), _log_softmax(candidate)
    kl = (np.exp(before) * (before - after)).sum(axis=1)
    found: Doubles = np.maximum(kl, 0.0)  # rounding may leave a zero just below zero
    return found


def _log_softmax(logits: Floats) -> Doubles:
    shifted: Doubles = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
