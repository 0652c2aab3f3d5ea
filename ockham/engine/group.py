"""`Group`: the sequences that answer one request."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.ledger import Ledger
from ockham.core.outputs import PositionLogprobs
from ockham.core.seams import SearchState, TokenScores
from ockham.engine import search_billing
from ockham.engine.messages import Delta
from ockham.engine.sequence import Sequence, Status
from ockham.kernels.sampling import process

if TYPE_CHECKING:
    from ockham.engine.assemble import Assembly


class Told:
    """What a branch has said, where its search decides which of it a caller is told."""

    __slots__ = ("drafted", "logprobs", "pieces", "prompt_logprobs")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.logprobs: list[PositionLogprobs] = []
        self.drafted: list[bool] = []
        self.prompt_logprobs: list[PositionLogprobs | None] | None = None

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.pieces.append(delta.text)
        self.logprobs += delta.logprobs or []
        self.drafted += delta.marks
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs

    @property
    def text(self) -> str:
        text = "".join(self.pieces)
        self.pieces = [text]
        return text

    def delta(self, sequence: Sequence, index: int) -> Delta:
        """All that a sequence has said, as choice `index` of its request."""
        return Delta(
            sequence.request_id,
            index,
            sequence.tokens[sequence.prompt_tokens :],
            self.text,
            self.logprobs or None,
            self.prompt_logprobs,
            sequence.finish_reason,
            sequence.stop_reason,
            drafted=self.drafted if any(self.drafted) else [],
        )


class OwnBranch:
    """One sequence of a group, as its search sees it: see `core.seams.Branch`."""

    __slots__ = ("came_due", "due", "logits", "own_from", "sequence", "told")

    def __init__(self, sequence: Sequence, own_from: int) -> None:
        self.sequence = sequence
        self.told = Told()
        self.due = self.came_due = False
        """`came_due`: since its search was asked last."""
        self.logits: Floats | None = None
        """Those of its next token, where they are wanted for its log probability: (1, vocabulary).
        """
        self.own_from = own_from
        """The first cell that no other branch goes on from."""

    def come_due(self, logits: Floats | None) -> None:
        """Its next row has been computed; it waits for what its search says."""
        self.due = self.came_due = self.sequence.held = True
        self.logits = logits

    @property
    def number(self) -> int:
        return self.sequence.index

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[self.sequence.prompt_tokens :]

    @property
    def length(self) -> int:
        return self.sequence.generated

    @property
    def text(self) -> str:
        return self.told.text

    def place(self, characters: int) -> int:
        return bisect_right(self.sequence.ends or [], characters)

    def characters(self, tokens: int) -> int:
        ends = self.sequence.ends or []
        return ends[min(tokens, len(ends)) - 1] if ends else 0

    @property
    def scores(self) -> TokenScores:
        scores = self.sequence.token_scores
        return TokenScores() if scores is None else scores

    @property
    def logprob(self) -> float:
        return self.sequence.cumulative_logprob

    @property
    def room(self) -> int:
        return self.sequence.remaining_tokens

    @property
    def held(self) -> bool:
        return self.sequence.held and not self.due

    @property
    def finish_reason(self) -> str | None:
        return self.sequence.finish_reason

    def processed(self, logits: Floats) -> Floats:
        return process(logits, self.sequence.draw(0)).astype(np.float32)


class Group:
    """The sequences that answer one request, by number. A search forks, drops and finishes them;
    without one they are the request's `n` choices, forked off the prompt.

    A request has `width` seats until it is answered. Its first sequence holds them all until the
    others are forked. `spare` are those that no sequence holds: of branches that have ended, and
    for which others may begin.
    """

    def __init__(
        self, engine: Assembly, first: Sequence, search: SearchState | None = None, name: str = ""
    ) -> None:
        """`name` is the search's."""
        self._engine = engine
        self.first = first
        self.search, self.name = search, name
        self.branches = {first.index: OwnBranch(first, first.prompt_tokens)}
        """Those that were not dropped, by number."""
        self._used = {first.index}
        self._spent: list[Ledger] = []
        """Of sequences that are no branch any more, and of texts that never were one."""
        self.spare = 0
        self._leaving: Sequence | None = None
        """A branch that others take the place of."""

    @property
    def sequences(self) -> list[Sequence]:
        return [branch.sequence for branch in self.branches.values()]

    @property
    def width(self) -> int:
        """Sequences that may live at once from now on."""
        return self.first.params.n if self.search is None else self.search.width

    @property
    def complete(self) -> bool:
        """Whether all sequences have begun with which it begins, and all of them have ended."""
        every = self.branches.values()
        return not self.first.forks and all(b.sequence.finish_reason is not None for b in every)

    def begin(self) -> Iterator[Sequence]:
        """Fork the other sequences with which it begins off the first, which is at the end of its
        prompt."""
        begins = self.first.params.n if self.search is None else self.search.begins
        self.first.forks = False
        for number in range(1, begins):
            yield self.fork(self.first, number)

    def adopt(self, sequence: Sequence) -> None:
        """Take in a sequence that comes from elsewhere."""
        self._used.add(sequence.index)
        self.branches[sequence.index] = OwnBranch(sequence, sequence.prompt_tokens)

    # -- what a search may do ------------------------------------------------------------------

    def fork(self, sequence: Sequence, number: int, tokens: int | None = None) -> Sequence:
        """A new branch that goes on from what `sequence` has said, or from its first `tokens`
        tokens. It waits for its turn, and computes again what it needs, if the state that it needs
        is not there. Raises ValueError for what cannot be."""
        engine, source = self._engine, self.branches[sequence.index]
        said = sequence.generated if tokens is None else tokens
        whole = said == sequence.generated
        if number in self._used:
            raise ValueError(f"the branch {number} is not a new one")
        if not 0 <= said <= sequence.generated or (whole and sequence.finish_reason is not None):
            raise ValueError(f"branch {sequence.index} cannot be forked after {said} tokens")
        live = (s for s in self.sequences if s is not self._leaving)
        if sum(s.finish_reason is None for s in live) >= self.width:
            raise ValueError(f"more branches at once than the {self.width} that were announced")
        # A row whose logits are gone is computed again.
        last = sequence.prompt_tokens + said - 1
        cells = sequence.computed if whole else min(sequence.computed, last)
        branch = self._copied(source, number, said)
        child = branch.sequence
        self._used.add(number)
        self.branches[number] = branch
        branch.own_from, source.own_from = cells, max(source.own_from, cells)
        child.computed_once = min(sequence.computed_once, cells + (not whole))
        child.start_s = sequence.start_s
        if self._has_seat and engine.scheduler.fork(sequence, child, cells):
            self._take_seat()
            child.redone_by = search_billing.FORK
            search_billing.book_fork(child, engine.cost, engine.ledger)
        else:
            engine.scheduler.add(child)
        if self.search is not None:
            child.observe(self.search.observer(number))
        return child

    def split(self, sequence: Sequence, numbers: Iterable[int], tokens: int) -> Iterator[Sequence]:
        """Put new branches that go on from the first `tokens` tokens of a branch in its place."""
        self.vacate(sequence)
        self._leaving = sequence
        try:
            for number in numbers:
                child = self.fork(sequence, number, tokens)
                child.held = self.branches[number].due
                yield child
        finally:
            self._leaving = None
        self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Give a branch up. What nobody else goes on from is waste."""
        engine, branch = self._engine, self.branches.pop(sequence.index)
        if sequence.status is not Status.FINISHED:
            self.release(sequence)
        search_billing.book_dropped(
            sequence, branch.own_from, self.name, engine.cost, engine.ledger
        )
        sequence.finish_reason = "drop"
        self._spent.append(sequence.ledger)

    def release(self, sequence: Sequence) -> None:
        """A branch computes nothing more: free its state, and keep its seat if another may begin
        for it."""
        engine = self._engine
        if sequence.status is Status.ENDED:
            sequence.status = Status.WAITING if sequence.view is None else Status.RUNNING
        self.vacate(sequence)
        engine.speculation.forget(sequence)
        engine.scheduler.finish(sequence)

    def vacate(self, sequence: Sequence) -> None:
        """Take the seats of a branch that computes nothing more, for others that may begin."""
        if sequence.view is not None:  # one that waits has none
            self._spare(sequence.seats)
            sequence.seats = 0

    def trim(self) -> None:
        """Give back the seats that no other branch may take any more."""
        seats = sum(s.seats for s in self.sequences if s.finish_reason is None)
        self._spare(min(0, self.width - seats - self.spare))

    def give_back(self) -> bool:
        """Give back the seats that no branch has taken yet; whether there were any."""
        had = self.spare > 0
        self._spare(-self.spare)
        return had

    def book(self, ledger: Ledger) -> None:
        """Count what belongs to the request and to none of its branches."""
        self._spent.append(ledger)

    def close(self) -> Ledger:
        """The bill of the whole request, which is answered or given up. Its seats are free."""
        self._spare(-self.spare)
        bill = Ledger()
        for each in [*(s.ledger for s in self.sequences), *self._spent]:
            bill.add(each)
        return bill

    # -- inside --------------------------------------------------------------------------------

    def _spare(self, seats: int) -> None:
        """So many seats more are held by no sequence."""
        self.spare += seats
        self._engine.scheduler.reserved_seats += seats

    @property
    def _has_seat(self) -> bool:
        """Whether another sequence may run at once. (Others may have taken the seat of one that was
        preempted.)"""
        return self.first.seats > 1 or self.spare > 0 or self._engine.scheduler.free_seats > 0

    def _take_seat(self) -> None:
        if self.first.seats > 1:
            self.first.seats -= 1
        elif self.spare:
            self._spare(-1)

    @staticmethod
    def _copied(source: OwnBranch, number: int, said: int) -> OwnBranch:
        """A branch that has said the first `said` tokens of another, without state."""
        old, told = source.sequence, source.told
        child = old.choice(number, None if old.text is None else old.text.fresh())
        branch = OwnBranch(child, 0)
        branch.told.logprobs, branch.told.drafted = told.logprobs[:said], told.drafted[:said]
        branch.told.prompt_logprobs = told.prompt_logprobs
        tokens = old.tokens[old.prompt_tokens :][:said]
        child.inputs = old.inputs[:said]
        child.ends = None if old.ends is None else []
        if old.token_scores is not None:
            child.score_tokens(old.token_scores.first(said))
        for token, entry in zip(tokens, branch.told.logprobs, strict=False):
            child.cumulative_logprob += entry[token].logprob
        if said < old.generated:
            branch.told.pieces = child.repeat(tokens)
            if old.unscored is not None and old.unscored < len(child.tokens):
                child.unscored = old.unscored
            return branch
        branch.due, branch.logits, child.held = source.due, source.logits, old.held
        branch.told.pieces = list(told.pieces)
        child.go_on_from(old)
        return branch
