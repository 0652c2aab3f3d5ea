"""How near one model is to another: what they predict, token by token, on the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ockham.core.errors import ConfigError
from ockham.core.step import Floats, Ints
from ockham.model.loading import LoadedModel
from ockham.model.windows import layouts_for, window_step

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Means over `tokens` predictions.

    `divergence` is the Kullback-Leibler divergence of the candidate from the reference in nats,
    `divergence_p99` its 99th percentile, `agreement` the share of predictions whose likeliest token
    is the same. Perplexities are of the text itself.
    """

    tokens: int
    divergence: float
    divergence_p99: float
    agreement: float
    reference_perplexity: float
    candidate_perplexity: float


def fidelity(reference: LoadedModel, candidate: LoadedModel, windows: Ints) -> Fidelity:
    """Compare two models on windows of token ids (count, length): each token but a window's first
    is predicted from those before it. Raises ConfigError unless their vocabularies are one size."""
    sizes = [model.description.vocab_size for model in (reference, candidate)]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"models with vocabularies of {sizes[0]} and {sizes[1]} do not compare.")
    divergences, same, surprises = [], 0, np.zeros(2)
    targets = windows[:, 1:]
    place = 0
    for both in zip(_logprobs(reference, windows), _logprobs(candidate, windows), strict=True):
        p, q = both  # (windows, length - 1, vocabulary)
        divergences.append((np.exp(p) * (p - q)).sum(axis=2).reshape(-1))
        same += int((p.argmax(axis=2) == q.argmax(axis=2)).sum())
        wanted = targets[place : place + len(p), :, None]
        surprises -= [np.take_along_axis(each, wanted, axis=2).sum() for each in both]
        place += len(p)
    every = np.concatenate(divergences)
    return Fidelity(
        len(every),
        float(every.mean()),
        float(np.quantile(every, 0.99)),
        same / len(every),
        *(math.exp(surprise / len(every)) for surprise in surprises),
    )


def _logprobs(model: LoadedModel, windows: Ints) -> Iterator[npt.NDArray[np.float64]]:
    """Of some windows at a time: (windows, length - 1, vocabulary)."""
    count, length = windows.shape
    at_once = max(1, ROWS_AT_ONCE // length)
    layouts = layouts_for(model.description, at_once, length, model.state_dtype)
    executor = model.backend.bind(model.program, model.backend.allocate(layouts))
    for start in range(0, count, at_once):
        part = windows[start : start + at_once]
        run = executor.begin(window_step(part, len(layouts)))
        executor.run(run, 0, len(model.program.ops))
        logits: Floats = executor.finish(run).logits
        wide = logits.reshape(len(part), length, -1)[:, :-1].astype(np.float64)
        wide -= wide.max(axis=2, keepdims=True)
        yield wide - np.log(np.exp(wide).sum(axis=2, keepdims=True))
