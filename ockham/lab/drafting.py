"""What drafters without a model cost beside the steps: time and memory, for one long sequence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.errors import ConfigError
from ockham.core.seams import Drafter, OwnRows, Seen
from ockham.core.speculative import parse
from ockham.engine.chosen import make_drafters

WORTH = 0.06
"""The chance below which a token is not proposed: about what a row costs at one sequence."""
MOST = 16
_NO_LOGITS = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class DraftingCost:
    """Of one drafter with a context of `context` tokens. Seconds of proposing and of taking in one
    more token are of each of `steps`; `first_s` is that of taking in the context at once."""

    method: str
    context: int
    steps: int
    propose_s: float
    propose_p99_s: float
    take_s: float
    first_s: float
    bytes: int


def measure_drafting(method: str, tokens: Ints, context: int) -> DraftingCost:
    """Let a drafter read `tokens[:context]`, then propose after each of the others.

    Raises ConfigError for a drafter that is not known, or that has a model: that one's cost is in
    its steps."""
    (drafter,) = make_drafters(parse({"method": method}))
    if drafter.joint:
        raise ConfigError(f"{method} drafts with a model; `ockham bench speculation` measures it.")
    stream = drafter.open("")
    wanted = candidates_of(drafter)
    likely = _likely(tokens, wanted)
    started = time.perf_counter()
    stream.extend(tokens[:context])
    first_s = time.perf_counter() - started
    if wanted:
        stream.saw(*_found(tokens[:context], likely[:context]))
    propose, take = [], []
    for at in range(context, len(tokens)):
        began = time.perf_counter()
        stream.propose(MOST, drafter.kinds, WORTH)
        proposed = time.perf_counter()
        stream.extend(tokens[at : at + 1])
        if wanted:
            stream.saw(*_found(tokens[at : at + 1], likely[at : at + 1]))
        take.append(time.perf_counter() - proposed)
        propose.append(proposed - began)
    found = DraftingCost(
        method=drafter.name,
        context=context,
        steps=len(propose),
        propose_s=float(np.median(propose)),
        propose_p99_s=float(np.percentile(propose, 99)),
        take_s=float(np.median(take)),
        first_s=first_s,
        bytes=stream.bytes + drafter.bytes,
    )
    stream.close()
    return found


def long_text(texts: Sequence[Sequence[int]], tokens: int) -> Ints:
    """So many tokens of these texts, one after the other, from the first again where they end."""
    every: Ints = np.array([token for text in texts for token in text], np.int32)
    return np.resize(every, tokens)


def candidates_of(drafter: Drafter) -> int:
    """How many of the likeliest tokens after a row its streams want to know."""
    if not drafter.observes:
        return 0
    stream, row = drafter.open(""), np.zeros(1, np.int32)
    wants = stream.wants(OwnRows(row, row, 1))
    stream.close()
    return wants.candidates


def _found(tokens: Ints, likely: Ints) -> tuple[OwnRows, Seen]:
    """What a step tells a stream that wants likely tokens, of rows that all choose."""
    rows = np.arange(len(tokens), dtype=np.int32)
    return OwnRows(tokens, rows, len(rows)), Seen(False, rows, likely, _NO_LOGITS, {}, {})


def _likely(tokens: Ints, count: int) -> Ints:
    """What a model might have found likely after each token: what came, and others."""
    drawn = np.random.default_rng(0).integers(0, int(tokens.max()) + 1, (len(tokens), count))
    if count:
        drawn[:-1, 0] = tokens[1:]
    return np.ascontiguousarray(drawn, np.int32)
