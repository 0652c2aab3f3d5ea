"""A text that was given, scored again: by the exact model, and by the techniques that gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.divergence import kl_nats
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Finish,
    Observer,
    OwnRows,
    Say,
    SearchState,
    Seen,
    Wants,
)
from ockham.engine.drawing import Drawing
from ockham.engine.messages import Request
from ockham.engine.structured.grammar import GrammarState
from ockham.kernels.sampling import Draw


class Given(msgspec.Struct, frozen=True):
    """The beginning of a text that a request was given: all that it takes to score it again.

    Of `given` (n,), the tokens from number `first` on are scored. `seed` and `stream` are those of
    the noise with which they were drawn. `request` has no prompt, which is `prompt` (p,), and asks
    for what gave the text: `keys` are those of the approximate techniques.
    """

    request: Request
    keys: tuple[str, ...]
    prompt: Ints
    given: Ints
    first: int
    seed: int
    stream: int

    @property
    def positions(self) -> int:
        """How many tokens are scored."""
        return len(self.given) - self.first

    @property
    def rows(self) -> int:
        """The most that scoring it once computes."""
        return len(self.prompt) + len(self.given)

    @property
    def nbytes(self) -> int:
        return int(self.prompt.nbytes + self.given.nbytes)

    def exact(self, name: str) -> Request:
        """The request that has the exact model score the text as a prompt."""
        tokens = [*self.prompt.tolist(), *self.given.tolist()]
        request = without_approximation(self.request, self.keys)
        return msgspec.structs.replace(
            request,
            request_id=name,
            prompt_token_ids=tokens,
            params=SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0),
            score_from=len(tokens) - self.positions,
        )

    def approximate(self, name: str) -> Request:
        """The request that a `Recital` answers, with the techniques that gave the text. Like that,
        the text is decoded, as it was, and not read as a prompt, which they may treat in another
        way."""
        return msgspec.structs.replace(
            self.request,
            request_id=name,
            prompt_token_ids=self.prompt.tolist(),
            params=SamplingParams(
                max_tokens=len(self.given),
                temperature=0.0,
                ignore_eos=True,
                asks=self.request.params.asks,
            ),
        )

    def draws(
        self, bad_words: list[list[int]], eos: frozenset[int], grammar: GrammarState | None
    ) -> list[Draw]:
        """What the sampler needs to draw each scored token again, of as many rows of logits."""
        params = self.request.params
        tokens, given = self.prompt.tolist(), self.given.tolist()
        drawing = Drawing(params, self.seed, self.stream, tokens, bad_words)
        stops = frozenset() if params.ignore_eos else eos
        stops |= frozenset(params.stop_token_ids or ())
        found: list[Draw] = []
        for number, token in enumerate(given):
            if number >= self.first:
                draw = drawing.draw(number - self.first, tokens, number, stops, grammar)
                if draw.mask is not None:
                    draw.mask = draw.mask.copy()  # which is the grammar's until it advances
                found.append(draw)
            tokens.append(token)
            drawing.count_all([token])
            if grammar is not None:
                grammar.advance(token)
        return found


def without_approximation(request: Request, keys: Sequence[str] = ()) -> Request:
    """The same request without the approximate techniques that the engine's settings name, and
    without what it asks of those of `keys`."""
    params = request.params
    if params.asks and any(key in params.asks for key in keys):
        asks = {key: ask for key, ask in params.asks.items() if key not in keys}
        params = msgspec.structs.replace(params, asks=asks or None)
    asks = {key: ask for key, ask in request.asks.items() if key not in keys}
    return msgspec.structs.replace(request, params=params, asks=asks, exact=True)


class Recital(SearchState):
    """Says a text that is given, and takes the divergence of what is predicted for its last tokens
    from `exact`, the logits of the exact model there: (positions, vocabulary)."""

    chooses: ClassVar[bool] = True

    def __init__(self, given: Ints, exact: Floats) -> None:
        self._given, self._exact = given.tolist(), exact
        self._newest: Floats | None = None
        self.nats: list[float] = []
        """The divergence at each position."""

    @property
    def width(self) -> int:
        return 1

    def observer(self, branch: int) -> Observer:
        return _Newest(self)

    def saw(self, logits: Floats) -> None:
        """The next token is predicted by these logits, (vocabulary,)."""
        self._newest = logits.copy()

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        """See `SearchState`."""
        ((number, branch),) = branches.items()
        if not branch.due:
            return []
        place = branch.length - (len(self._given) - len(self._exact))
        if place >= 0:
            assert self._newest is not None, "the branch is due"
            row: Doubles = kl_nats(self._exact[place : place + 1], self._newest[np.newaxis])
            self.nats.append(float(row[0]))
        if branch.length + 1 == len(self._given):
            return [Finish([number])]
        return [Say(number, self._given[branch.length])]


class _Newest(Observer):
    """Tells a recital the logits of its newest row."""

    def __init__(self, recital: Recital) -> None:
        self._recital = recital

    def wants(self, own: OwnRows) -> Wants:
        return Wants(logits=True)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self._recital.saw(seen.logits[-1])
