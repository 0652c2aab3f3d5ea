"""The tokens of one stream, its sampling parameters, its view of the state, and its bill."""

from __future__ import annotations

from collections import Counter
from enum import Enum

import numpy as np

from ockham.cache.state import View
from ockham.core.asks import Asked
from ockham.core.ledger import Ledger
from ockham.core.outputs import PositionLogprobs
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import NOTHING_KEPT, PLAIN, Fetch, Noise, SearchState, Splice
from ockham.core.step import Floats, Ints
from ockham.engine.structured.grammar import GrammarState
from ockham.engine.text import TextOutput
from ockham.kernels.sampling import NO_TOKENS, Draw, Ids


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    APART = "apart"
    """What it says was computed by another sequence."""
    FINISHED = "finished"


class Sequence:
    """One choice of one request: a prompt and what was generated after it.

    `order` is the place in the order of arrival and the choice's index, which is also its noise
    stream.
    `computed` cells hold valid state; the next row to compute is token `computed`.
    """

    __slots__ = (
        "approximation",
        "arrival_s",
        "bad_words",
        "computed",
        "computed_once",
        "cumulative_logprob",
        "fetch",
        "finish_reason",
        "first_token_s",
        "grammar",
        "handle",
        "hint",
        "index",
        "inexact_from",
        "inputs",
        "last_served",
        "ledger",
        "most_tokens",
        "order",
        "orderly",
        "output_counts",
        "params",
        "patient",
        "penalised",
        "plain",
        "priority",
        "prompt",
        "prompt_ids",
        "prompt_logprobs",
        "prompt_tokens",
        "request_id",
        "salt",
        "search",
        "search_name",
        "seats",
        "seed",
        "splice",
        "start_s",
        "status",
        "stop_ids",
        "stop_reason",
        "tenant",
        "text",
        "todo",
        "tokens",
        "unsettled",
        "view",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        order: tuple[int, int],
        tokens: list[int],
        params: SamplingParams,
        *,
        seed: int,
        most_tokens: int,
        stop_ids: frozenset[int],
        bad_words: list[list[int]],
        text: TextOutput | None,
        arrival_s: float,
        grammar: GrammarState | None = None,
        salt: str = "",
        tenant: str = "",
        priority: int = 0,
        approximation: Asked | None = None,
        hint: int = PLAIN,
        patient: bool = False,
        orderly: bool = False,
        search: SearchState | None = None,
        search_name: str = "",
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.order = order
        self.tokens = tokens
        self.prompt_tokens = len(tokens)
        self.params = params
        self.seed = seed
        self.most_tokens = most_tokens
        """Length, prompt included, at which the sequence must end."""
        self.stop_ids = stop_ids
        self.bad_words = bad_words
        self.text = text
        self.grammar = grammar
        """Where its output stands in the grammar that it must follow."""
        self.unsettled = False
        """Whether its grammar is still to say if the latest token has completed the output."""
        self.arrival_s = arrival_s
        self.salt = salt
        self.tenant = tenant
        """Who shares the engine fairly with others."""
        self.priority = priority
        """Among those of its tenant: the lower, the earlier."""
        self.hint = hint
        """What is said of its state once it has ended: see `Reuse.hint`."""
        self.patient = patient
        """Whether it waits for whatever another computes of its prompt, be it a single token."""
        self.orderly = orderly
        """Whether it should begin only when there is room for all that it may generate, and not
        before those that were planned before it."""
        self.search = search
        self.search_name = search_name
        """All of its request's choices as one, whose generated tokens only hold the place: their
        rows' inputs are `inputs`."""
        self.inputs: list[Floats] = []
        self.handle = NOTHING_KEPT
        """What the Reuse keeps for it while it runs."""
        self.approximation = approximation
        self.splice: Splice | None = None
        """What it takes over approximately, while its prompt is computed."""
        self.todo: Ints | None = None
        """The cells from `computed` on that are to be computed, while others are given."""
        self.inexact_from: int | None = None
        """The first cell that was given approximately, and on which all later ones depend."""
        self.fetch: Fetch | None = None
        """What the Reuse brings near for it while it waits; None if it was not asked yet."""
        self.prompt: Ints = np.asarray(tokens, np.int32)
        self.seats = params.n if index == 0 and search is None else 1
        """Running sequences that this one counts for: its choices, until they are forked."""
        self.start_s: float | None = None
        self.first_token_s: float | None = None
        self.view: View | None = None
        self.computed = 0
        self.computed_once = 0
        """Cells that were computed at some time: computing them again is waste."""
        self.status = Status.WAITING
        self.last_served = -1
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.cumulative_logprob = 0.0
        self.prompt_logprobs: list[PositionLogprobs | None] | None = (
            None if params.prompt_logprobs is None or index else [None]
        )
        self.ledger = Ledger()
        self.penalised = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        """Whether the sampler must know what the output holds."""
        self.plain = (
            not self.penalised
            and not bad_words
            and params.logprobs is None
            and params.logit_bias is None
            and params.allowed_token_ids is None
            and grammar is None
            and search is None
        )
        """Whether, once `min_tokens` is reached, only the position changes from draw to draw, and
        nothing but the token is wanted of it."""
        self.output_counts: Counter[int] = Counter()
        self.prompt_ids: Ids = (
            np.unique(np.asarray(tokens, np.int64))
            if params.repetition_penalty != 1.0
            else NO_TOKENS
        )

    def choice(self, index: int, text: TextOutput | None) -> Sequence:
        """Another choice of the same request, as it stands before its first token."""
        return Sequence(
            self.request_id,
            index,
            (self.order[0], index),
            list(self.tokens),
            self.params,
            seed=self.seed,
            most_tokens=self.most_tokens,
            stop_ids=self.stop_ids,
            bad_words=self.bad_words,
            text=text,
            grammar=None if self.grammar is None else self.grammar.fresh(),
            arrival_s=self.arrival_s,
            salt=self.salt,
            tenant=self.tenant,
            priority=self.priority,
            hint=self.hint,
            patient=self.patient,
            orderly=self.orderly,
        )

    def token_ids(self, count: int) -> Ints:
        """The first `count` tokens as an array."""
        if count <= self.prompt_tokens:
            return self.prompt[:count]
        rest = np.asarray(self.tokens[self.prompt_tokens : count], np.int32)
        return np.concatenate((self.prompt, rest))

    def take(self, splice: Splice) -> None:
        """Take over what a splice gives, and compute the rest."""
        # The rows of generated tokens are computed, and those whose logits are wanted.
        first = self.prompt_tokens
        if self.prompt_logprobs is not None and not self.scored:
            first = max(self.computed, len(self.prompt_logprobs) - 1)
        rest = np.arange(first, self.target, dtype=np.int32)
        todo = np.concatenate((splice.todo[splice.todo < min(first, self.target)], rest))
        in_place = todo == np.arange(self.computed, self.computed + len(todo))
        self.splice, self.todo, self.inexact_from = splice, todo, None
        if not in_place.all():
            self.inexact_from = self.computed + int(np.argmin(in_place))

    def leave_splice(self) -> None:
        """Take over nothing more; what was taken stays."""
        if self.splice is not None:
            self.splice.leave()
        self.splice = self.todo = None
        if self.inexact_from is not None and self.inexact_from >= self.computed:
            self.inexact_from = None

    def next_cells(self, rows: int) -> Ints:
        """The cells of the next `rows` rows."""
        if self.todo is None:
            return np.arange(self.computed, self.computed + rows, dtype=np.int32)
        first = int(np.searchsorted(self.todo, self.computed))
        return self.todo[first : first + rows]

    def end_after(self, rows: int) -> int:
        """How many cells are valid once the next `rows` rows are computed."""
        return self.computed + rows if self.todo is None else int(self.next_cells(rows)[-1]) + 1

    @property
    def exact_cells(self) -> int:
        """Leading cells whose state is what the model alone would have computed."""
        cells = self.computed if self.search is None else min(self.computed, self.prompt_tokens)
        return cells if self.inexact_from is None else min(cells, self.inexact_from)

    @property
    def scored(self) -> bool:
        """Whether no row of the prompt is wanted for its log probabilities any more."""
        return self.prompt_logprobs is None or len(self.prompt_logprobs) >= self.prompt_tokens

    @property
    def scores_only(self) -> bool:
        """Whether nothing is to be sampled: only the prompt's log probabilities are wanted."""
        return self.most_tokens == self.prompt_tokens

    @property
    def target(self) -> int:
        """Cells that must be valid before the next token can be sampled, or the prompt scored."""
        # The last token of a prompt that is only scored predicts nothing that anyone asked for.
        return max(1, self.prompt_tokens - 1) if self.scores_only else len(self.tokens)

    @property
    def remaining(self) -> int:
        """Rows to compute before the next token can be sampled, or the prompt is scored."""
        if self.todo is not None:
            return len(self.todo) - int(np.searchsorted(self.todo, self.computed))
        return self.target - self.computed

    remaining_prefill = remaining

    @property
    def reusable(self) -> int:
        """How many of the first cells need not be computed if their state is held: of the others,
        the logits are wanted too."""
        cells = (self.target if self.search is None else self.prompt_tokens) - 1
        if self.prompt_logprobs is not None and not self.scored:
            cells = min(cells, len(self.prompt_logprobs) - 1)
        return cells

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining_tokens(self) -> int:
        """Tokens that it may still generate, at most."""
        return self.most_tokens - len(self.tokens)

    @property
    def decoding(self) -> bool:
        """Whether the next row is the only one that stands before the next token."""
        return self.computed > 0 and self.computed == len(self.tokens) - 1

    @property
    def steady(self) -> bool:
        """Whether every next step is one new row that gives one token drawn like the one before,
        until the sequence ends."""
        return (
            self.plain
            and self.decoding
            and self.generated >= max(1, self.params.min_tokens)
            and self.seats == 1
            and self.computed_once <= self.computed
        )

    @property
    def ready(self) -> bool:
        """Whether its next token could be drawn if its logits were there: one whose grammar is
        still at work sits steps out."""
        return self.grammar is None or (not self.unsettled and self.grammar.ready)

    @property
    def greedy(self) -> bool:
        """Whether the next token is the one with the largest logit, and nothing else is wanted of
        the logits."""
        return (
            self.plain
            and self.params.temperature == 0.0
            and self.generated >= self.params.min_tokens
            and self.scored
        )

    @property
    def forced(self) -> int | None:
        """The next token, where it is known without any logits, and nothing else is wanted."""
        if self.grammar is None or not self.scored or self.params.logprobs is not None:
            return None
        if self.bad_words or self.params.allowed_token_ids is not None:
            return None  # which may forbid it
        if self.generated < self.params.min_tokens:
            return None
        tokens = self.grammar.forced()
        return tokens[0] if tokens else None

    @property
    def may_draft(self) -> bool:
        """Whether several of its next tokens could be verified in one step."""
        return (
            self.decoding
            and self.seats == 1
            and self.todo is None
            and self.scored
            and not self.scores_only
            and self.search is None
            and self.computed_once <= self.computed
            and (self.grammar is None or not self.grammar.slow)
        )

    @property
    def noise(self) -> Noise | None:
        """What a drafter needs to draw as the sampler will; None if there is no noise."""
        if self.params.temperature == 0.0:
            return None
        return Noise(self.params, self.seed, self.index)

    def wanted_logits(self, rows: int) -> range:
        """Of the next `rows` rows, those (counted from 0) whose logits are wanted."""
        if self.prompt_logprobs is not None and not self.scored:
            # Row i of the prompt scores token i + 1. A recomputed row was scored before.
            cells = self.next_cells(rows)
            return range(int(np.searchsorted(cells, len(self.prompt_logprobs) - 1)), rows)
        return range(rows - (rows == self.remaining and not self.scores_only), rows)

    def push(self, token: int) -> None:
        """Append a sampled token."""
        self.tokens.append(token)
        if self.grammar is not None:
            self.grammar.advance(token)
        if self.penalised:
            self.output_counts[token] += 1

    def draw(self, row: int) -> Draw:
        """What the sampler needs to choose the next token from logits row `row`."""
        params = self.params
        draw = Draw(
            row, params, self.seed, self.index, len(self.tokens), forbidden=self._forbidden()
        )
        if self.grammar is not None:
            draw.mask = self.grammar.mask()
        if self.penalised:
            draw.output = np.fromiter(self.output_counts, np.int64, len(self.output_counts))
            draw.output_counts = np.fromiter(
                self.output_counts.values(), np.int64, len(self.output_counts)
            )
            draw.seen = np.union1d(self.prompt_ids, draw.output)
        return draw

    @property
    def waits_for_fork(self) -> bool:
        """Whether the prompt is done and the other choices are still to be forked."""
        return self.seats > 1 and self.computed == self.prompt_tokens

    def _forbidden(self) -> list[int]:
        """Stop tokens while the output is too short, and tokens that would end a bad word."""
        forbidden = list(self.stop_ids) if self.generated < self.params.min_tokens else []
        for word in self.bad_words:
            before = len(word) - 1
            if before <= self.generated and self.tokens[len(self.tokens) - before :] == word[:-1]:
                forbidden.append(word[-1])
        return forbidden
