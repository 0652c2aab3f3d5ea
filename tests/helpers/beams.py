"""A beam search, which the tests of searches run, and what it should find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Drop,
    Finish,
    Fork,
    Observer,
    OwnRows,
    Problem,
    Say,
    SearchState,
    Seen,
    Wants,
)
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.serving import drain


class Beams(SearchState):
    """The `width` likeliest texts, as far as a beam of that width finds them."""

    chooses: ClassVar[bool] = True

    def __init__(self, problem: Problem) -> None:
        self.beams = problem.params.n
        self.scores: dict[int, float] = {0: 0.0}
        self.logits: dict[int, Floats] = {}
        self.number = 0

    @property
    def width(self) -> int:
        return self.beams

    def observer(self, branch: int) -> Observer:
        return Logits(self, branch)

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        live = {n: b for n, b in branches.items() if b.finish_reason is None}
        if not live:
            return [Finish(sorted(branches, key=lambda n: (-self.scores[n], n)))]
        if not all(branch.due for branch in live.values()):
            return []
        rows = {n: likely(b.processed(self.logits[n])) for n, b in live.items()}
        best = best_of({n: (self.scores[n], rows[n]) for n in live}, self.beams)
        drops: list[Action] = [Drop(n) for n in live if n not in {number for number, _, _ in best}]
        forks: list[Action] = []
        says: list[Action] = []
        scores, taken = {}, set()
        for parent, token, score in best:
            number = parent
            if parent in taken:
                self.number += 1
                number = self.number
                forks.append(Fork(parent, number))
            taken.add(parent)
            says.append(Say(number, token))
            scores[number] = score
        self.scores = scores
        return [*drops, *forks, *says]


class Logits(Observer):
    def __init__(self, beams: Beams, number: int) -> None:
        self.beams, self.number = beams, number

    def wants(self, own: OwnRows) -> Wants:
        return Wants(logits=True)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self.beams.logits[self.number] = seen.logits[-1].copy()


def likely(row: Floats) -> Floats:
    """Log probabilities, as float64."""
    wide = row.astype(np.float64)
    largest = wide.max()
    return wide - largest - np.log(np.exp(wide - largest).sum())


def best_of(scored: Mapping[int, tuple[float, Floats]], count: int) -> list[tuple[int, int, float]]:
    """(text, token, score) of the best continuations of some texts."""
    every = [
        (-(score + float(row[token])), number, int(token))
        for number, (score, row) in scored.items()
        for token in np.argsort(-row, kind="stable")[:count]
    ]
    return [(number, token, -score) for score, number, token in sorted(every)[:count]]


def brute_force(engine: Engine, prompt: list[int], count: int, length: int) -> list[list[int]]:
    """The same beams, each of whose texts is scored from its beginning."""
    texts, scores = [[]], [0.0]
    for _ in range(length):
        rows = [likely(logits_after(engine, prompt + text)) for text in texts]
        best = best_of(dict(enumerate(zip(scores, rows, strict=True))), count)
        texts = [[*texts[number], token] for number, token, _ in best]
        scores = [score for _, _, score in best]
    return texts


def logits_after(engine: Engine, text: list[int]) -> Floats:
    rows: list[Floats] = []
    engine.on_scored = lambda _, logits: rows.append(logits[-1].copy())
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    engine.take(
        Request(
            request_id="scored",
            prompt_token_ids=[*text, 0],
            params=params,
            detokenize=False,
            score_from=len(text),
        )
    )
    drain(engine)
    engine.on_scored = None
    return rows[-1]
