"""Several drafts of a completion from one pass of the model."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.asks import Ask
from ockham.core.errors import InvalidRequest
from ockham.core.registry import register
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Blend,
    Branch,
    Finish,
    Observer,
    OwnRows,
    Problem,
    SearchState,
    Seen,
    Wants,
)

_LOGITS = Wants(logits=True)
LONGEST = 6
"""Tokens of the longest run that is counted."""
_NGRAM_WEIGHT = 0.5
"""How much of a draft's chance is what runs of tokens say (the paper's alpha is about as large)."""
_FLOOR = 0.02
"""The least that runs of tokens say of any token."""
_MOST_TOKENS = 1 << 18
"""Tokens of a tenant's texts whose runs are remembered; the texts that came first leave first."""


class Runs:
    """How often a token came after each run of up to `LONGEST - 1` tokens."""

    def __init__(self) -> None:
        self._after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self._texts: OrderedDict[bytes, list[int]] = OrderedDict()
        self._tokens = 0

    def read(self, text: Ints) -> None:
        """Count the runs of a text, once however often it comes."""
        key = text.tobytes()
        if key in self._texts or len(text) > _MOST_TOKENS:
            return
        self._texts[key] = text.tolist()
        self._count(self._texts[key], 1)
        while self._tokens > _MOST_TOKENS:
            _, oldest = self._texts.popitem(last=False)
            self._count(oldest, -1)

    def shares(self, before: Sequence[int], tokens: Sequence[int]) -> Floats | None:
        """How likely each of `tokens` is after a text, by the runs that it ends with: longer ones
        count twice as much as those that are one shorter. None if none of them was ever read."""
        total = np.zeros(len(tokens))
        weight, weights = 1.0, 0.0
        for length in range(1, min(LONGEST - 1, len(before)) + 1):
            after = self._after.get(tuple(before[-length:]))
            weight *= 2.0
            if not after:
                break  # nor can a longer one have been read
            count = after.total()
            total += weight * np.array([after[token] / count for token in tokens])
            weights += weight
        if not weights:
            return None
        shares: Floats = np.maximum(total / weights, _FLOOR).astype(np.float32)
        return shares

    def _count(self, text: list[int], by: int) -> None:
        self._tokens += by * len(text)
        for end in range(1, len(text)):
            for length in range(1, min(LONGEST - 1, end) + 1):
                run = tuple(text[end - length : end])
                after = self._after[run]
                after[text[end]] += by
                if not after[text[end]]:
                    del after[text[end]]
                    if not after:
                        del self._after[run]


class SuperposedAsk(Ask, kw_only=True, frozen=True):
    """All `n` choices are taken from one pass of the model, approximately: they are not what it
    would say alone, and the most likely ones, not samples: the temperature is 0."""

    def check_params(self, params: SamplingParams) -> None:
        if params.n < 2 or params.temperature != 0.0:
            raise InvalidRequest(
                "superposed takes several choices from one pass and samples none of them: it needs "
                f"n of at least 2 and temperature 0, got n={params.n} and "
                f"temperature={params.temperature}.",
                "superposed",
            )
        plain = SamplingParams(temperature=0.0)
        for name in _NEVER:
            if getattr(params, name) != getattr(plain, name):
                raise InvalidRequest(
                    f"superposed choices have no {name}; leave one of the two out.", name
                )


_NEVER = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "allowed_token_ids", "bad_words", "min_tokens", "logprobs"),
    *("prompt_logprobs", "structured_outputs"),
)
"""Parameters that choices of one pass cannot have."""


@register("search", "superposed", exact=False, books=("superposed",), paper="88")
class Superposed:
    """As many drafts as wished at the cost of one (Superposed Decoding, Shen et al. 2024).

    The next row's input is the sum of the drafts' latest token embeddings, weighted by the drafts'
    chances. The likeliest tokens after it may follow each of the drafts; which do is decided by
    that chance and by how often such runs of tokens were read in the tenant's prompts, so that what
    one draft began another does not go on with. Approximate: no draft is what the model says alone.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "superposed"
    Ask: ClassVar[type[SuperposedAsk]] = SuperposedAsk

    def __init__(self) -> None:
        self._runs: defaultdict[str, Runs] = defaultdict(Runs)

    def begin(self, ask: SuperposedAsk, problem: Problem) -> Drafts:
        """See `Search`."""
        runs = self._runs[problem.salt]
        runs.read(problem.prompt)
        return Drafts(problem.params.n, problem.prompt.tolist(), runs, problem.stops)


@dataclass(slots=True)
class _Draft:
    tokens: list[int] = field(default_factory=list)
    chance: float = 0.0
    """Its logarithm."""
    ended: bool = False


class Drafts(SearchState, Observer):
    """The drafts of one prompt so far, all of which are one branch; see `SearchState`."""

    chooses: ClassVar[bool] = True

    def __init__(self, count: int, prompt: list[int], runs: Runs, stops: frozenset[int]) -> None:
        self._count, self._runs, self._stops = count, runs, stops
        self._before = prompt[-LONGEST:]
        self._drafts = [_Draft()]
        self._logits: Floats = np.empty(0, np.float32)
        """Of the latest row: (vocabulary,)."""

    @property
    def drafts(self) -> list[list[int]]:
        """The likeliest first."""
        return [draft.tokens for draft in self._drafts]

    @property
    def width(self) -> int:
        """See `SearchState`."""
        return 1

    def observer(self, branch: int) -> Observer:
        """See `SearchState`."""
        return self

    def after(self, branches: Mapping[int, Branch]) -> list[Action | Finish]:
        """See `SearchState`."""
        (branch,) = branches.values()
        following = self.go_on()
        if following and branch.room > 1:
            tokens, weights = zip(*following, strict=True)
            return [Blend(branch.number, tokens, weights)]
        rows = len(branch.tokens)
        spared = [(0, rows)] * (self._count - 1)
        return [Finish(self.drafts, spared)]

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return _LOGITS

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._logits = seen.logits[-1].copy()

    def go_on(self) -> list[tuple[int, float]]:
        """Go on by the latest row: tokens and weights of the next row's input. Empty when every
        draft has ended."""
        logits = self._logits
        likely = np.argpartition(-logits, self._count - 1)[: self._count]
        likely = likely[np.lexsort((likely, -logits[likely]))]
        largest = float(logits[likely[0]])
        total = largest + float(np.log(np.exp(logits - largest).sum()))
        own = logits[likely] - total
        grown = [draft for draft in self._drafts if draft.ended]
        for draft in self._drafts:
            if not draft.ended:
                grown += self._grown(draft, likely.tolist(), own)
        # The sort is stable: of equals, the one from the better draft and token stays.
        grown.sort(key=lambda draft: -draft.chance)
        self._drafts = grown[: self._count]
        running = [draft for draft in self._drafts if not draft.ended]
        if not running:
            return []
        weights = np.exp([draft.chance - running[0].chance for draft in running])
        weights /= weights.sum()
        return [(d.tokens[-1], float(w)) for d, w in zip(running, weights, strict=True)]

    def _grown(self, draft: _Draft, tokens: list[int], own: Floats) -> list[_Draft]:
        """A draft with each of some tokens, which the model gives these log probabilities."""
        shares = self._runs.shares([*self._before, *draft.tokens][-LONGEST:], tokens)
        if shares is not None:
            own = np.asarray((1 - _NGRAM_WEIGHT) * own + _NGRAM_WEIGHT * np.log(shares), np.float32)
        return [
            _Draft([*draft.tokens, token], draft.chance + float(gain), token in self._stops)
            for token, gain in zip(tokens, own, strict=True)
        ]
