"""`Cells`: which cells a sequence holds, drops and takes over."""

from __future__ import annotations

import numpy as np

from ockham.cache.state import View
from ockham.core.outputs import PositionLogprobs
from ockham.core.seams import Keeping, Observer, Splice
from ockham.core.step import Floats, Ints
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.gates import OpenGate
from ockham.engine.patterns import OpenPattern
from ockham.engine.pooling import Pool
from ockham.engine.splicing import Splicing


class Cells:
    """What a `Sequence` says of its state. The attributes are the sequence's."""

    __slots__ = (
        "border",
        "computed",
        "gate",
        "inexact_from",
        "inputs",
        "keeping",
        "most_tokens",
        "observers",
        "pattern",
        "pool",
        "prompt",
        "prompt_logprobs",
        "prompt_tokens",
        "shares",
        "splicing",
        "tokens",
        "unscored",
        "view",
    )

    tokens: list[int]
    prompt: Ints
    prompt_tokens: int
    most_tokens: int
    prompt_logprobs: list[PositionLogprobs | None] | None
    inputs: list[Floats]
    computed: int
    view: View | None
    keeping: Keeping | None
    border: int | None
    splicing: Splicing | None
    inexact_from: int | None
    observers: tuple[Observer, ...]
    pattern: OpenPattern | None
    shares: bool
    pool: Pool | None
    gate: OpenGate | None
    unscored: int | None

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
        if (unscored := self.first_unscored) is not None:
            first = min(first, max(self.computed, unscored - 1))
        blocks = self.whole_until > self.computed
        self.splicing = Splicing(splice, first, self.target)
        self.inexact_from = self.computed if blocks else self.splicing.first_given(self.computed)
        self.observers = (*self.observers, splice)

    def leave_splice(self) -> None:
        """Take over nothing more; what was taken stays."""
        if self.splicing is not None:
            splice = self.splicing.splice
            splice.leave()
            self.observers = tuple(each for each in self.observers if each is not splice)
        self.splicing = None
        # Rows that are under way may be some of a block that would have to be computed in one step.
        blocks = self.pattern is not None and self.pattern.whole_until > self.computed
        if self.inexact_from is not None and self.inexact_from >= self.computed and not blocks:
            self.inexact_from = None

    def next_cells(self, rows: int) -> Ints:
        """The cells of the next `rows` rows."""
        if self.splicing is None:
            return np.arange(self.computed, self.computed + rows, dtype=np.int32)
        return self.splicing.next_cells(self.computed, rows)

    def end_after(self, rows: int) -> int:
        """How many cells are valid once the next `rows` rows are computed."""
        return self.computed + rows if self.splicing is None else int(self.next_cells(rows)[-1]) + 1

    @property
    def exact_cells(self) -> int:
        """Leading cells whose state is what any sequence of the same key would have computed."""
        if not self.shares:
            return 0
        cells = min(self.computed, self.prompt_tokens) if self.inputs else self.computed
        until = self.exact_until
        return cells if until is None else min(cells, until)

    @property
    def exact_until(self) -> int | None:
        """The first token whose state no other sequence may go on from: one that an approximate
        reuse gave, before which cells were dropped, or with which its pattern or its gate begins.
        None if there is none."""
        dropped = None if self.keeping is None else self.keeping.border(0)
        patterned = None if self.pattern is None else self.pattern.exact_until
        gated = None if self.gate is None else self.gate.exact_until
        untils = (self.inexact_from, dropped, patterned, gated)
        return min((each for each in untils if each is not None), default=None)

    @property
    def findable(self) -> int:
        """How many of its first tokens have state that others may have left."""
        patterned = None if self.pattern is None else self.pattern.exact_until
        gated = None if self.gate is None else self.gate.exact_until
        return min(each for each in (len(self.tokens), patterned, gated) if each is not None)

    @property
    def whole_until(self) -> int:
        """The end of the query blocks that are each computed in one step (`SequencePattern`). None
        are where another text's state is taken over, which is shared with nobody then."""
        taking = self.splicing is not None or self.inexact_from is not None
        return 0 if self.pattern is None or taking else self.pattern.whole_until

    def whole_cells(self, cells: int) -> int:
        """So many leading cells, but for those of a block that must be computed in one step."""
        return cells if cells >= self.whole_until else cells // BLOCK_KEYS * BLOCK_KEYS

    def goes_on_at(self, cells: int) -> int:
        """How many of so many leading cells, which others computed, it may go on from."""
        whole = self.whole_cells(cells)
        if self.pattern is None:
            return whole
        return self.pattern.goes_on_at(whole, self.prompt_tokens)

    def whole_rows(self, rows: int, room: int) -> int:
        """The next `rows` rows, without those of a block that must be computed in one step. At
        least one such block, if there is room for so many rows."""
        end = self.whole_cells(self.computed + rows)
        if rows and end == self.whole_cells(self.computed) < self.whole_until:
            end += BLOCK_KEYS
        return end - self.computed if rows > 0 and end - self.computed <= room else 0

    @property
    def least_rows(self) -> int:
        """How many rows the step must have room for that computes its next ones."""
        return BLOCK_KEYS if self.computed < self.whole_until else 1

    @property
    def dropped(self) -> list[int]:
        """How many cells each group of layers has dropped; empty if none has."""
        view = self.view
        if view is None or not view.compacted_at:
            return []
        return [held.dropped for held in view.groups]

    @property
    def reordered(self) -> bool:
        """Whether its cells stand in the order that its pattern asks for."""
        view, keeping = self.view, self.keeping
        reorders = keeping is not None and keeping.reorders is not None
        return reorders and view is not None and bool(view.compacted_at)

    def keep_by(self, keeping: Keeping) -> None:
        """Let `keeping` decide from now on which cells stay."""
        old, self.keeping = self.keeping, keeping
        if keeping.observes:
            others = [each for each in self.observers if each is not old]
            self.observers = (*others, keeping)
        self.find_border()

    def find_border(self) -> None:
        """See where cells are dropped next. To be called whenever `computed` is set to what a view
        brings along, or back to nothing."""
        if self.keeping is not None:
            done = self.computed
            compacted_at = 0 if self.view is None else self.view.compacted_at
            self.border = self.keeping.border(done - 1 if done > compacted_at else done)

    @property
    def rows_to_border(self) -> int:
        """How many rows may be computed before cells are dropped, if it has a border."""
        border = self.border
        if border == self.computed and self.keeping is not None:  # they will be, before that
            border = self.keeping.border(self.computed)
        return 1 << 30 if border is None else border - self.computed

    @property
    def scored(self) -> bool:
        """Whether no row is wanted any more for the log probability of a token that is known."""
        return self.first_unscored is None

    @property
    def first_unscored(self) -> int | None:
        """The first token that is known, and whose log probability is wanted and not there yet: row
        i gives that of token i + 1."""
        scored = self.prompt_logprobs
        if scored is not None and len(scored) < self.prompt_tokens:
            return len(scored)
        return self.unscored

    @property
    def scores_only(self) -> bool:
        """Whether nothing is to be sampled: only the prompt's log probabilities are wanted, or what
        is made of its hidden states."""
        return self.most_tokens == self.prompt_tokens

    @property
    def target(self) -> int:
        """Cells that must be valid before the next token can be sampled, or the prompt scored."""
        # The last token of a prompt that is only scored predicts nothing that anyone asked for.
        if self.scores_only and self.pool is None:
            return max(1, self.prompt_tokens - 1)
        return len(self.tokens)

    @property
    def remaining(self) -> int:
        """Rows to compute before the next token can be sampled, or the prompt is scored."""
        if self.splicing is not None:
            return self.splicing.remaining(self.computed)
        return self.target - self.computed

    remaining_prefill = remaining

    @property
    def reusable(self) -> int:
        """How many of the first cells need not be computed if their state is held: of the others,
        the logits are wanted too."""
        if self.pool is not None and self.pool.whole:
            return 0
        cells = (self.prompt_tokens if self.inputs else self.target) - 1
        if (unscored := self.first_unscored) is not None:
            cells = min(cells, unscored - 1)
        return min(cells, self.findable)
