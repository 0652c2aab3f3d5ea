"""Drafting with a model: trees that grow depth by depth, for all sequences in the same steps."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Floats
from ockham.core.errors import ConfigError
from ockham.core.seams import Draft, Drafter, DraftStream, Foreseen, Rows, SecondModel, Wish
from ockham.draft.modelled.growing import FIRST_PRIOR, MOST_COMPUTED, OTHER_PRIOR, Growing
from ockham.draft.modelled.row_cost import RowCost
from ockham.draft.modelled.stream import ROOT, ModelStream
from ockham.kernels.sampling import Draw
from ockham.model.checkpoint.draft_files import AcceptanceHead

LIKELY = 16
"""Of each row, the tokens that may be drafted; of sampled sequences, the drawn one is among them
too."""
_LONGEST_REST = 256
"""Most proposals that are skipped before a row is tried again."""

MOST_BRANCHES = 8

Place = tuple[Growing, int]
"""A token of a draft, or the `ROOT` of it."""

LEAST_CONTEXT = 64


class DraftingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model` is the model that drafts, with up to `branches` tokens below each token of a draft
    (1: chains), and with none for which the chance that it or one before it is rejected exceeds
    `rejection_threshold`."""

    model: str | None = None
    branches: int = 4
    rejection_threshold: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.branches <= MOST_BRANCHES:
            raise ConfigError(
                f"branches must lie in [1, {MOST_BRANCHES}], got {self.branches}; 1 drafts chains."
            )
        if not 0.0 < self.rejection_threshold <= 1.0:
            raise ConfigError(
                f"rejection_threshold must lie in (0, 1], got {self.rejection_threshold}; 1 lets "
                "drafts end where they no longer pay."
            )


class ContextOptions(DraftingOptions, frozen=True, forbid_unknown_fields=True):
    """What drafts reads `draft_context` tokens of a text at most."""

    draft_context: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_context < LEAST_CONTEXT:
            raise ConfigError(
                f"draft_context must be at least {LEAST_CONTEXT}, got {self.draft_context}."
            )


class ModelDrafting(Drafter):
    """What drafters with a model have in common.

    A draft is a tree. Of each row the likeliest tokens are ranked, of sampled sequences by their
    logits with the noise that the target will draw with, which takes them without replacement
    (Gumbel-top-k: Recursive Speculative Decoding, paper 48), and the best ones that are worth a row
    of the target become branches. Those branches are continued, all of one depth in one step, for
    which a row more brings more than it costs. What a token of some share is worth is learned by
    the controller (kinds), what a row costs here.

    Where a head was trained that foretells acceptance (`head`; SpecDec++, paper 101), its chances
    stand for the shares of the likeliest tokens. No token is drafted for which the chance that it
    or an ancestor is rejected exceeds `rejection_threshold`.
    """

    joint: ClassVar[bool] = True
    kinds: ClassVar[tuple[float, ...]] = FIRST_PRIOR + OTHER_PRIOR
    model: SecondModel

    def __init__(self, branches: int, rejection_threshold: float = 1.0) -> None:
        self._branches = branches
        self._least = 1.0 - rejection_threshold
        self.head: AcceptanceHead | None = None
        self._cost = RowCost()
        self.reading_s = 0.0

    def propose_all(
        self, streams: Sequence[DraftStream], wishes: Sequence[Wish], worth: float, token_s: float
    ) -> list[Draft | None]:
        """See `Drafter`."""
        self.reading_s = 0.0
        worth = max(worth, self._least)
        growing = [
            Growing(stream, wish)
            for stream, wish in zip(streams, wishes, strict=True)
            if isinstance(stream, ModelStream) and wish.most > 0
        ]
        places, foreseen = self._catch_up(self._worth_reading(growing, worth, token_s))
        while places:
            assert foreseen is not None, "every place has its row"
            self._branch(places, foreseen, worth)
            places = self._worth_continuing(places, worth, token_s)
            foreseen = self._continue(places) if places else None
        drafts = {id(each.stream): each.draft() for each in growing}
        return [drafts.get(id(stream)) for stream in streams]

    # -- what is worth a row ---------------------------------------------------------------------

    def _worth_reading(self, growing: list[Growing], worth: float, token_s: float) -> list[Growing]:
        """Those that should be drafted for. Of the others each is tried again ever more rarely."""
        gains = [self._gain(each, ROOT, worth, token_s) for each in growing]
        if sum(gains) > self._cost.of(len(growing)):
            for each in growing:
                each.stream.skipped, each.stream.rest = 0, 1
            return growing
        tried = []
        for each in growing:
            stream = each.stream
            stream.skipped += 1
            if stream.skipped >= stream.rest:
                stream.skipped, stream.rest = 0, min(2 * stream.rest, _LONGEST_REST)
                tried.append(each)
        return tried

    def _worth_continuing(self, places: list[Place], worth: float, token_s: float) -> list[Place]:
        """Of the tokens that were drafted last, those whose rows bring the most; their cells are
        reserved."""
        growing = list(dict.fromkeys(each for each, _ in places))
        ranked = sorted(
            (
                (-self._gain(each, number, worth, token_s), i, number)
                for i, each in enumerate(growing)
                for number in each.continuable()
            ),
        )[: self.model.most_rows]
        best, most, gained = 0, 0.0, 0.0
        for count, (loss, _, _) in enumerate(ranked, 1):
            gained -= loss
            surplus = gained - self._cost.of(count)
            if loss < 0.0 and (surplus > most or math.isinf(surplus)):
                best, most = count, surplus
        chosen = sorted((i, number) for _, i, number in ranked[:best])
        counts = Counter(i for i, _ in chosen)
        able = {i for i, count in counts.items() if growing[i].stream.reserve(count)}
        return [(growing[i], number) for i, number in chosen if i in able]

    def _gain(self, each: Growing, number: int, worth: float, token_s: float) -> float:
        """Seconds that the row of a token brings: what may follow it, less what that costs to
        verify."""
        chance = each.chance(number)
        if math.isinf(token_s):  # whatever may be verified is drafted
            return math.inf if chance >= worth else 0.0
        return max(0.0, chance * each.stream.following - worth) * token_s

    # -- rows ------------------------------------------------------------------------------------

    def _catch_up(self, growing: list[Growing]) -> tuple[list[Place], Foreseen | None]:
        """Compute what the streams have not read yet, of those that the pool has room for."""
        for each in growing:
            each.stream.settle()
        able = [
            each
            for each in growing
            if each.stream.unread and each.stream.reserve(len(each.stream.unread))
        ]
        left, rows = list(able), {}
        while left:
            began, room, chunks = time.perf_counter(), self.model.most_rows, []
            for each in left:
                if room:
                    chunks.append((each, each.stream.rows(room)))
                    room -= len(chunks[-1][1].tokens)
            foreseen = self._run([chunk for _, chunk in chunks])
            for row, (each, _) in enumerate(chunks):
                rows[id(each)] = foreseen.row(row)
            self._book(chunks, time.perf_counter() - began)
            left = [each for each in left if each.stream.unread]
        if not able:
            return [], None
        return [(each, ROOT) for each in able], Foreseen.of([rows[id(each)] for each in able])

    def _continue(self, places: list[Place]) -> Foreseen:
        """Compute the rows of drafted tokens, whose cells are reserved."""
        began, chunks = time.perf_counter(), []
        for each, group in groupby(places, key=lambda place: place[0]):
            numbers = [number for _, number in group]
            first = each.stream.view.tokens
            above = [each.compute(number, first + i) for i, number in enumerate(numbers)]
            chunks.append(self._rows(each, numbers, above))
        foreseen = self._run(chunks)
        self._cost.learn(len(places), time.perf_counter() - began)
        return foreseen

    def _rows(self, each: Growing, numbers: list[int], above: list[list[int]]) -> Rows:
        """The rows of some of a draft's tokens, which see the cells `above`."""
        tokens = [each.tokens[number] for number in numbers]
        return Rows(each.stream.view, tokens, each.stream.committed, above)

    def _run(self, chunks: Sequence[Rows]) -> Foreseen:
        return self.model.run(chunks, LIKELY, hidden=self.head is not None)

    def _book(self, chunks: Sequence[tuple[Growing, Rows]], seconds: float) -> None:
        """Reading a prompt is no cost of a draft: every later one needs it."""
        if any(each.stream.fresh for each, _ in chunks):
            self.reading_s += seconds
        elif (rows := sum(len(chunk.tokens) for _, chunk in chunks)) <= MOST_COMPUTED:
            self._cost.learn(rows, seconds)
        for each, _ in chunks:
            each.stream.fresh = bool(each.stream.fresh and each.stream.unread)

    # -- what may come next ----------------------------------------------------------------------

    def _branch(self, places: list[Place], foreseen: Foreseen, worth: float) -> None:
        """Add what may follow each of these places."""
        drawn = self._drawn(places, foreseen.logits)
        for row, (each, number) in enumerate(places):
            choices = self._ranked(each, number, foreseen, row, drawn.get(row))
            each.branch(number, choices, worth)

    def _drawn(self, places: list[Place], logits: Floats) -> dict[int, int]:
        """Of the rows of sampled sequences, the token that this model draws with their noise."""
        draws = [
            Draw(row, noise.params, noise.seed, noise.stream, each.position(number))
            for row, (each, number) in enumerate(places)
            if (noise := each.wish.noise) is not None
        ]
        tokens = self.model.sample(logits, draws)
        return {
            draw.row: token for draw, token in zip(draws, tokens, strict=True) if token is not None
        }

    def _ranked(
        self, each: Growing, number: int, foreseen: Foreseen, row: int, drawn: int | None
    ) -> list[tuple[int, float]]:
        """What may follow a place, the best first, each with its share among the likely ones.

        Of a sampled sequence that is the mean of two: how likely this model finds it, and how far
        the noise puts it before the others, which this model's errors must overcome."""
        tokens, noise = foreseen.candidates[row], each.wish.noise
        if noise is None or drawn is None:
            shares = self._judged(_softmax(foreseen.logits[row, tokens]), foreseen, row)
            best = np.arange(min(self._branches, len(tokens)))
        else:
            tokens = np.union1d(tokens, drawn)
            logits = foreseen.logits[row, tokens].astype(np.float64)
            scores = logits + noise.params.temperature * self.model.noise(
                noise.seed, noise.stream, each.position(number), tokens.astype(np.int64)
            )
            scores[tokens == drawn] = scores.max()  # a filter may have kept others from being drawn
            shares = self._judged(_softmax(logits), foreseen, row)
            shares = (shares + _softmax(scores)) / 2
            scores[tokens == drawn] = np.inf
            best = np.argsort(-scores, kind="stable")[: self._branches]
        return list(zip(tokens[best].tolist(), shares[best].tolist(), strict=True))

    def _judged(self, shares: Doubles, foreseen: Foreseen, row: int) -> Doubles:
        """The shares with what the head says of the likeliest in the place of its own; what is left
        is the others'."""
        if self.head is None or foreseen.hidden is None:
            return shares
        best, chance = int(shares.argmax()), self.head.chance(foreseen.hidden[row])
        judged: Doubles = shares * (1.0 - chance) / max(1.0 - shares[best], 1e-9)
        judged[best] = chance
        return judged


def _softmax(scores: Floats | Doubles) -> Doubles:
    weights: Doubles = np.exp(scores - scores.max(), dtype=np.float64)
    shares: Doubles = weights / weights.sum()
    return shares
