"""How the tokens of one sequence are drawn: what the sampler must know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ockham.core.sampling_params import SamplingParams
from ockham.engine.structured.grammar import GrammarState
from ockham.kernels.sampling import NO_TOKENS, Draw, Ids


class Drawing:
    """The settings of a sequence's draws, and the counts of its output where a penalty asks for
    them. `stream` is its noise stream."""

    __slots__ = ("_counts", "_prompt_ids", "bad_words", "params", "penalised", "seed", "stream")

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        stream: int,
        prompt: Sequence[int],
        bad_words: list[list[int]],
    ) -> None:
        self.params, self.seed, self.stream, self.bad_words = params, seed, stream, bad_words
        self.penalised = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        """Whether the sampler must know what the output holds."""
        self._counts: Counter[int] = Counter()
        self._prompt_ids: Ids = (
            np.unique(np.asarray(prompt, np.int64))
            if params.repetition_penalty != 1.0
            else NO_TOKENS
        )

    def count(self, token: int) -> None:
        """The output has one more token. Needed only where it is `penalised`."""
        self._counts[token] += 1

    def count_all(self, tokens: Sequence[int]) -> None:
        """The output has these tokens more."""
        if self.penalised:
            self._counts.update(tokens)

    def draw(
        self,
        row: int,
        tokens: list[int],
        generated: int,
        stops: frozenset[int],
        grammar: GrammarState | None,
    ) -> Draw:
        """What the sampler needs to choose the token after `tokens`, of which `generated` are
        output, from logits row `row`."""
        forbidden = self._forbidden(tokens, generated, stops)
        draw = Draw(row, self.params, self.seed, self.stream, len(tokens), forbidden=forbidden)
        if grammar is not None:
            draw.mask = grammar.mask()
        if self.penalised:
            counts = self._counts
            draw.output = np.fromiter(counts, np.int64, len(counts))
            draw.output_counts = np.fromiter(counts.values(), np.int64, len(counts))
            draw.seen = np.union1d(self._prompt_ids, draw.output)
        return draw

    def _forbidden(self, tokens: list[int], generated: int, stops: frozenset[int]) -> list[int]:
        """Stop tokens while the output is too short, and tokens that would end a bad word."""
        forbidden = list(stops) if generated < self.params.min_tokens else []
        for word in self.bad_words:
            before = len(word) - 1
            if before <= generated and tokens[len(tokens) - before :] == word[:-1]:
                forbidden.append(word[-1])
        return forbidden
