"""The tokens of one stream, its sampling parameters, its view of the state, and its bill."""

from __future__ import annotations

from enum import Enum

import numpy as np

from ockham.cache.state import View
from ockham.core.asks import Asked
from ockham.core.ledger import Ledger
from ockham.core.outputs import PositionLogprobs
from ockham.core.seams import (
    NOTHING_KEPT,
    Constraint,
    Fetch,
    Keeping,
    Leniency,
    Noise,
    Observer,
    TokenScores,
)
from ockham.core.step import Floats, Ints
from ockham.engine.adapters import HeldAdapter
from ockham.engine.cells import Cells
from ockham.engine.drawing import Drawing
from ockham.engine.gates import OpenGate
from ockham.engine.messages import HINTS, Request
from ockham.engine.patterns import HeldBlocks, OpenPattern
from ockham.engine.pooling import Pool
from ockham.engine.repetition import Repetition
from ockham.engine.splicing import Splicing
from ockham.engine.structured.grammar import GrammarState
from ockham.engine.text import TextOutput
from ockham.engine.thinking import Closing, Thinking
from ockham.kernels.sampling import Draw


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    """It has said all, and its state stays for the rest of the step: its search may fork it."""
    APART = "apart"
    """Its tokens are those of a text that a search has found, not of rows of its own."""
    FINISHED = "finished"


class Sequence(Cells):
    """One choice of one request: a prompt and what was generated after it.

    `order` is the place in the order of arrival and the choice's `index`, which is also its noise
    stream.
    The state of `computed` tokens is valid, in whichever cells the groups of layers hold of it; the
    next row to compute is token `computed`.
    """

    __slots__ = (
        "adapter",
        "arrival_s",
        "checkpoint_at",
        "chosen",
        "computed_once",
        "cumulative_logprob",
        "drawing",
        "ends",
        "eos",
        "fetch",
        "finish_reason",
        "first_token_s",
        "forks",
        "grammar",
        "handle",
        "held",
        "index",
        "last_served",
        "ledger",
        "leniency",
        "order",
        "params",
        "partings",
        "plain",
        "redone_by",
        "repetition",
        "request",
        "request_id",
        "salt",
        "seats",
        "seed",
        "start_s",
        "status",
        "stop_ids",
        "stop_reason",
        "text",
        "thinking",
        "token_scores",
        "unsettled",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        arrival: int,
        *,
        seed: int,
        most_tokens: int,
        stop_ids: frozenset[int],
        eos: frozenset[int],
        bad_words: list[list[int]],
        text: TextOutput | None,
        arrival_s: float,
        grammar: GrammarState | None = None,
        thinking: Thinking | None = None,
        gate: OpenGate | None = None,
        adapter: HeldAdapter | None = None,
        salt: str,
        shares: bool,
        seats: int = 1,
        forks: bool = False,
        chosen: bool = False,
        observer: Observer | None = None,
        pattern: OpenPattern | None = None,
        keeping: Keeping | None = None,
        pool: Pool | None = None,
        leniency: Leniency | None = None,
    ) -> None:
        self.request = request
        """What was asked, which all choices share and nobody changes."""
        self.request_id, self.params = request.request_id, request.params
        self.index = index
        self.order = (arrival, index)
        self.tokens = list(request.prompt_token_ids)
        self.prompt_tokens = len(self.tokens)
        self.prompt: Ints = np.asarray(self.tokens, np.int32)
        self.seed = seed
        self.most_tokens = most_tokens
        """Length, prompt included, at which the sequence must end."""
        self.stop_ids = stop_ids
        """Tokens that end it."""
        self.eos = eos
        """The model's own end tokens."""
        self.text = text
        self.grammar = grammar
        """Where its output stands in the grammar that it must follow."""
        self.thinking = thinking
        """Where its output stands in the thought before the answer; None for a text without."""
        detection = self.params.repetition_detection
        self.repetition = (
            Repetition(detection) if detection is not None and detection.max_pattern_size else None
        )
        """What finds out that its output has got into a loop, if it is to end then."""
        self.unsettled = False
        """Whether the grammar has yet to say if the latest token completed the output."""
        self.chosen = chosen
        """Whether a search says what its tokens are, and the sampler does not."""
        self.held = False
        """Whether it sits steps out until its search goes on with it."""
        self.inputs: list[Floats] = []
        """If they are not embeddings of tokens, the inputs of the rows after the prompt. The
        generated tokens are placeholders then."""
        self.pattern = pattern
        """Which blocks of keys its rows visit, as was asked; None for all. See `visited`."""
        self.keeping = keeping
        """What decides which of its cells stay; None if all do."""
        self.border: int | None = None
        """How many tokens are computed when cells are dropped next; no step crosses it."""
        self.gate = gate
        """Which sublayers its rows skip; None if they run the whole model."""
        own = (observer, keeping if keeping is not None and keeping.observes else None)
        self.observers: tuple[Observer, ...] = tuple(each for each in own if each is not None)
        """What wants to know of its rows, drafters' streams aside."""
        if pattern is not None and pattern.of.observes:
            self.observers = (*self.observers, pattern.of)
        if gate is not None and gate.of.observes:
            self.observers = (*self.observers, gate.of)
        self.pool = pool
        """What gathers its hidden states; None if its tokens are what is wanted."""
        self.leniency = leniency
        """How drafted tokens stay that were not drawn; None: none does."""
        self.drawing = Drawing(self.params, seed, index, self.tokens, bad_words)
        self.salt = salt
        """The key under which its state is kept and found, see `core.state_key`."""
        self.seats = seats
        """Seats of running sequences that it takes: those of its group, until that is forked."""
        self.forks = forks
        """Whether the others of its group are still to be forked at the end of its prompt."""
        self.adapter = adapter
        """What is added to the products of its rows."""
        # Its life.
        self.status = Status.WAITING
        self.arrival_s = arrival_s
        self.start_s: float | None = None
        self.first_token_s: float | None = None
        self.last_served = -1
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.ledger = Ledger()
        # Its state.
        self.view: View | None = None
        self.computed = 0
        self.checkpoint_at = 0
        """Up to which token it last left what others may go on from, of layers that keep no keys
        and values."""
        self.partings: set[int] = set()
        """Places of its prompt up to which another has the same tokens, see `Checkpoints`."""
        self.computed_once = 0
        """The most tokens whose state it ever had: computing it again is booked as waste."""
        self.redone_by: str | None = None
        """What made it compute cells again, if it was no preemption."""
        self.shares = shares
        """Whether others of the same key may go on from its state."""
        self.handle = NOTHING_KEPT
        """What the Reuse keeps for it while it runs."""
        self.fetch: Fetch | None = None
        """What the Reuse brings near for it while it waits; None if it was not asked yet."""
        self.splicing: Splicing | None = None
        """What it takes over approximately, while its prompt is computed."""
        self.inexact_from: int | None = None
        """The first cell that an approximate reuse gave. The state of all later cells depends on
        it."""
        # What is said of it beside its tokens.
        self.cumulative_logprob = 0.0
        self.ends: list[int] | None = None
        """Characters of its text after each token, where its search may ask."""
        self.token_scores: TokenScores | None = None
        """How sure the model was of its tokens, where its search wants to know."""
        self.unscored: int | None = None
        """The first token of its search's whose scores are wanted and not there yet."""
        self.prompt_logprobs: list[PositionLogprobs | None] | None = (
            None if self.params.prompt_logprobs is None or index else [None]
        )
        self.plain = (
            not self.drawing.penalised
            and not bad_words
            and self.params.logprobs is None
            and self.params.logit_bias is None
            and self.params.allowed_token_ids is None
            and grammar is None
            and not chosen
            and observer is None
            and leniency is None
            and (keeping is None or not keeping.observes)
        )
        """Whether, once `min_tokens` is reached, only the position changes from draw to draw, and
        nothing but the token is wanted of it."""
        self.find_border()

    def choice(self, index: int, text: TextOutput | None) -> Sequence:
        """Another choice of the same request, as it stands before its first token."""
        return Sequence(
            self.request,
            index,
            self.order[0],
            seed=self.seed,
            most_tokens=self.most_tokens,
            stop_ids=self.stop_ids,
            eos=self.eos,
            bad_words=self.drawing.bad_words,
            text=text,
            grammar=None if self.grammar is None else self.grammar.fresh(),
            thinking=None if self.thinking is None else self.thinking.fresh(),
            arrival_s=self.arrival_s,
            gate=None if self.gate is None else self.gate.fork(),
            adapter=self.adapter,
            salt=self.salt,
            shares=self.shares,
            chosen=self.chosen,
            pattern=None if self.pattern is None else self.pattern.fork(),
            keeping=None if self.keeping is None else self.keeping.fresh(),
            leniency=self.leniency,
        )

    def observe(self, observer: Observer | None) -> None:
        """Let a search see its rows."""
        if observer is not None:
            self.observers, self.plain = (*self.observers, observer), False

    def score_tokens(self, scores: TokenScores) -> None:
        """Note how sure the model is of each token from now on, after those of `scores`."""
        self.token_scores, self.plain = scores, False

    def repeat(self, tokens: list[int]) -> list[str]:
        """Say again what another has said, none of which ended that one; the pieces of text."""
        pieces = []
        for token in tokens:
            self.push(token)
            piece = "" if self.text is None else self.say(self.text, token)[0]
            pieces.append(piece)
            self.note_end(piece)
        return pieces

    def note_end(self, piece: str) -> None:
        """The token that was pushed last has added this to the text."""
        if self.ends is not None:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(piece))

    def go_on_from(self, other: Sequence) -> None:
        """Stand where another choice of the request does, which has said more."""
        tokens = other.tokens[other.prompt_tokens :]
        self.tokens += tokens
        self.drawing.count_all(tokens)
        self.text = None if other.text is None else other.text.fork()
        self.ends = None if other.ends is None else other.ends.copy()
        self.grammar = None if other.grammar is None else other.grammar.fork(tokens)
        self.thinking = None if other.thinking is None else other.thinking.fork()
        self.repetition = None if other.repetition is None else other.repetition.fork()
        self.unsettled = other.unsettled
        self.unscored = other.unscored

    @property
    def visited(self) -> OpenPattern | None:
        """Which blocks of keys its next rows visit; None for all. Where heads kept different
        numbers of cells, those are the blocks that each head holds: such a sequence has no other
        pattern."""
        view, keeping = self.view, self.keeping
        if keeping is None or view is None or not view.compacted_at:
            return self.pattern
        gaps = [held.gaps for held in view.groups]
        if all(each is None for each in gaps):
            return self.pattern
        return OpenPattern(keeping.name, HeldBlocks(gaps))

    @property
    def approximation(self) -> Asked | None:
        """What may be given to it approximately. Other choices fork what the first one has."""
        return None if self.index else self.request.asked("reuse")

    @property
    def tenant(self) -> str:
        return self.request.tenant or self.request.cache_salt

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def orderly(self) -> bool:
        return self.request.orderly

    @property
    def hint(self) -> int:
        """What is said of its state once it has ended: see `Reuse.hint`."""
        return HINTS[self.request.cache_hint]

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
            and (self.thinking is None or self.closes is None)
            and self.decoding
            and self.generated >= max(1, self.params.min_tokens)
            and not self.forks
            and not self.held
            and self.computed_once <= self.computed
        )

    @property
    def ready(self) -> bool:
        """Whether its next token could be drawn if its logits were there: one whose grammar is
        still at work sits steps out, and so does one that its search holds."""
        if self.held:
            return False
        return self.grammar is None or (not self.unsettled and self.grammar.ready)

    @property
    def greedy(self) -> bool:
        """Whether the next token is the one with the largest logit, and nothing else is wanted of
        the logits."""
        return (
            self.plain
            and (self.thinking is None or self.closes is None)
            and self.params.temperature == 0.0
            and self.generated >= self.params.min_tokens
            and self.scored
        )

    @property
    def forced(self) -> int | None:
        """The next token, where it is known without any logits, and nothing else is wanted."""
        if self.grammar is None and self.thinking is None:
            return None
        if not self.scored or self.params.logprobs is not None:
            return None
        if (closing := self.closes) is not None:
            return closing
        if self.grammar is None:
            return None
        if self.chosen:
            return None
        if self.drawing.bad_words or self.params.allowed_token_ids is not None:
            return None  # which may forbid it
        if self.generated < self.params.min_tokens:
            return None
        tokens = self.grammar.forced()
        return tokens[0] if tokens else None

    @property
    def closes(self) -> int | None:
        """The next token, where its thought is being ended. It comes whatever else is asked."""
        thinking = self.thinking
        return thinking.closing[0] if thinking is not None and thinking.closing else None

    @property
    def repeats(self) -> bool:
        """Whether its output has got into a loop that is to end it."""
        found = self.repetition is not None and self.repetition.found
        return found and self.generated >= self.params.min_tokens

    def end_thought(self) -> bool:
        """Let its thought end with the next token; False if it does not think."""
        thinking = self.thinking
        if thinking is None or self.chosen:
            return False
        return thinking.end(self.tokens[self.prompt_tokens :])

    @property
    def constraint(self) -> Constraint | None:
        """What may leave its next tokens no choice."""
        return self.grammar if self.thinking is None else Closing(self.thinking, self.grammar)

    @property
    def may_draft(self) -> bool:
        """Whether several of its next tokens could be verified in one step."""
        return (
            self.decoding
            and not self.forks
            and self.splicing is None
            and self.scored
            and not self.scores_only
            and not self.chosen
            and not self.observers
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
        if (unscored := self.first_unscored) is not None:
            # A row that is computed again was looked at before.
            return range(int(np.searchsorted(self.next_cells(rows), unscored - 1)), rows)
        return range(rows - (rows == self.remaining and not self.scores_only), rows)

    def wanted_hidden(self, rows: int) -> range:
        """Of the next `rows` rows, those (counted from 0) whose last hidden states are wanted."""
        if self.pool is None:
            return range(0)
        return self.pool.rows(self.computed, rows, self.remaining)

    def push(self, token: int) -> None:
        """Append a sampled token."""
        self.tokens.append(token)
        if self.grammar is not None:
            self.grammar.advance(token)
        if self.thinking is not None and self.thinking.watched:
            self.thinking.advance(token)
        if self.repetition is not None:
            self.repetition.push(token)
        if self.drawing.penalised:
            self.drawing.count(token)

    def say(self, text: TextOutput, token: int) -> tuple[str, str | None]:
        """Add the token that was pushed last to its `text`: what may be shown now, and the stop
        string that it completed. Only what belongs to the answer completes one."""
        may_stop, thinking = self.generated >= self.params.min_tokens, self.thinking
        if thinking is None or not thinking.watched:
            return text.push(token, may_stop=may_stop)
        if thinking.undecided:
            return text.hold(token), None
        may_stop = may_stop and thinking.answering
        return text.push(token, may_stop=may_stop, begins=thinking.begins)

    def ends_with(self, token: int) -> bool:
        """Whether the token that was pushed last ends its text: a stop token that a caller named
        does so in the answer only."""
        if token not in self.stop_ids:
            return False
        thinking = self.thinking
        thinks = thinking is not None and thinking.watched and not thinking.answering
        return not (thinks and token not in self.eos)

    def draw(self, row: int) -> Draw:
        """What the sampler needs to choose the next token from logits row `row`."""
        return self.drawing.draw(row, self.tokens, self.generated, self.stop_ids, self.grammar)

    @property
    def waits_for_fork(self) -> bool:
        """Whether the prompt is done and the other choices are still to be forked."""
        return self.forks and self.computed == self.prompt_tokens
