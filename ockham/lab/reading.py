"""What a model finds likely where it reads a text that it did not write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request


def likeliest(engine: Engine, tokens: Sequence[int], count: int) -> Ints:
    """The `count` likeliest tokens after each of `tokens`, the likeliest first: (tokens, count). -1
    where it was not read: after the last one, and beyond the context of the model."""
    found: Ints = np.full((len(tokens), count), -1, np.int32)
    at = 0

    def take(_: str, logits: Floats) -> None:
        nonlocal at
        best = np.argpartition(-logits, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(logits, best, 1), axis=1, kind="stable")
        found[at : at + len(logits)] = np.take_along_axis(best, order, 1)
        at += len(logits)

    before, engine.on_scored = engine.on_scored, take
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, seed=0)
    read = list(tokens[: engine.max_model_len])
    try:
        engine.add(
            Request(request_id="reading", prompt_token_ids=read, params=params, detokenize=False)
        )
        while engine.has_work:
            engine.step()
    finally:
        engine.on_scored = before
    return found
