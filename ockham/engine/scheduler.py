"""Which rows the next step computes, and whose pages they go to.

A step is filled up to the token budget: running sequences' next rows first, then chunks of prompts,
so that a long prompt never stalls the others. When pages run out, the policy's victim gives up its
state and computes it again later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from ockham.cache.state import State, View
from ockham.core.asks import ReuseAsk
from ockham.core.seams import (
    NOTHING_KEPT,
    PLAIN,
    ApproximateReuse,
    Candidate,
    Keep,
    Policy,
    Reuse,
)
from ockham.engine.drafts import Tree
from ockham.engine.sequence import Sequence, Status
from ockham.engine.waiting import Waiting

ROOM_TOKENS = 64
"""What an orderly sequence is given room to generate at least before another begins: most answers
of a batch are short, and room for the longest that is allowed would stand empty."""
MOST_LOOKUPS = 16
"""Long prompts in a step of which it is looked up whether most is held, so that they are short."""


@dataclass(slots=True)
class Chunk:
    """The next `rows` rows of a sequence, the last of which are those of `draft`."""

    sequence: Sequence
    rows: int
    draft: Tree | None = None

    @property
    def kept(self) -> int:
        """Rows whose cells are valid once they are computed, whatever is drawn from them."""
        return self.rows if self.draft is None else self.rows - len(self.draft)

    @property
    def logits(self) -> int:
        """Rows whose logits are wanted."""
        return self.rows if self.draft is not None else len(self.sequence.wanted_logits(self.rows))


class Scheduler:
    """Waiting and running sequences, and the plan of each step.

    `most_logits` bounds the rows of a step that want logits (each takes a vocabulary of memory),
    `most_scores` those of prompts that are scored, in a step that also decodes (each takes time).
    """

    def __init__(
        self,
        state: State,
        policy: Policy,
        keep: Keep,
        reuse: Reuse,
        approximate: Mapping[str, ApproximateReuse],
        *,
        most_rows: int,
        most_sequences: int,
        most_logits: int,
        most_scores: int,
    ) -> None:
        self.state = state
        self.policy = policy
        self.keep = keep
        self.reuse = reuse
        self.on_reused: Callable[[Sequence, int, int], None] = lambda sequence, tokens, held: None
        """Told of an admitted sequence how many of its tokens need not be computed, and how many
        are held."""
        self.approximate = approximate
        self.place_given: Callable[[Sequence, int], None] = lambda sequence, stop: None
        """Asked to put what a sequence is given, up to the cell `stop`, into its reserved cells."""
        self.on_given: Callable[[Sequence, int], None] = lambda sequence, stop: None
        """Told that a sequence's cells up to `stop` are about to be valid, some of them given."""
        self.most_rows = most_rows
        self.most_sequences = most_sequences
        self.most_logits = most_logits
        self.most_scores = most_scores
        self.waiting = Waiting()
        """In the order of arrival, also those that were preempted."""
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.steps = 0
        self._served = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)
        try:
            self.policy.add(sequence)
        except BaseException:
            self.waiting.remove(sequence)
            raise

    def schedule(self, drafts: Mapping[Sequence, Tree] | None = None) -> list[Chunk]:
        """The chunks of the next step, with their cells reserved. Empty if nothing can run.

        `drafts` are to be verified if there is room for them."""
        self.steps += 1
        self.reuse.advance(bool(self.running))
        plan = _Plan(self.most_rows, self.most_logits)
        runnable = [s for s in self.running if s.ready]
        decoding = [s for s in runnable if s.decoding]
        if len(decoding) > min(plan.rows, plan.logits):
            decoding.sort(key=lambda s: s.last_served)  # those that waited longest first
        # A row is left to the prompts, so that running sequences cannot starve them.
        prompts = len(decoding) < len(runnable) or bool(self.waiting)
        first = decoding[: self.most_rows - 1] if prompts and self.most_rows > 1 else decoding
        self._decode(plan, first, drafts or {})
        if plan.rows:
            self._prefill(plan, [s for s in runnable if not s.decoding])
        self._decode(plan, decoding[len(first) :], {})
        for chunk in plan.chunks:
            self._served += 1
            chunk.sequence.last_served = self._served
        return plan.chunks

    @property
    def decodes_only(self) -> bool:
        """Whether `schedule` could do no more than give each running sequence its next row, if all
        of them decode, have no choices to fork, and find the pages that they need."""
        running = len(self.running)
        full = running >= self.most_sequences and not self.policy.pressing
        return 0 < running <= min(self.most_rows, self.most_logits) and (full or not self.waiting)

    def go_on(self, chunks: list[Chunk]) -> None:
        """Count a step of `chunks`, one for each running sequence, whose cells are reserved."""
        self.steps += 1
        for served, chunk in enumerate(chunks, self._served + 1):
            chunk.sequence.last_served = served
        self._served += len(chunks)

    def evictable(self) -> list[int]:
        """About how many pages of each group could be given back by what keeps them."""
        every: list[Reuse | ApproximateReuse] = [self.reuse, *self.approximate.values()]
        return [sum(pages) for pages in zip(*(each.evictable() for each in every), strict=True)]

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Start `child` with the state that `parent` has computed so far."""
        assert parent.view is not None, "only a running sequence can be forked"
        child.view = self.state.fork(parent.view)
        child.handle = self.reuse.share(parent.handle)
        child.computed = child.computed_once = parent.computed
        child.inexact_from = parent.inexact_from
        child.start_s = parent.start_s
        child.status = Status.RUNNING
        parent.seats -= 1
        self.running.append(child)
        self.policy.begin(child)

    def resume(self, sequence: Sequence, view: View) -> None:
        """Run a waiting sequence on from `view`, whose cells hold the state of its first tokens."""
        sequence.view = view
        sequence.computed = sequence.computed_once = view.length
        self.policy.begin(sequence)
        self._unqueue(sequence)
        sequence.status = Status.RUNNING
        self.running.append(sequence)

    def take_in(self, sequence: Sequence, view: View | None) -> None:
        """Go on with a sequence that comes from elsewhere, and with its state if it has any."""
        once = sequence.computed_once
        self.add(sequence)
        if view is not None:
            self.resume(sequence, view)
            sequence.computed_once = max(once, view.length)
            if sum(s.seats for s in self.running) > self.most_sequences:
                self.preempt(sequence)

    def reserve_draft(self, view: View, cells: int) -> bool:
        """Whether the cells up to `cells` of a running sequence can be written to without taking a
        page from anyone."""
        pages = -(-cells // self.state.page_tokens) - view.pages + view.shared_tail
        spare = pages + len(self.running)  # each of the others may need one for its next row
        evictable, free = self.evictable(), self.state.free_pages()
        if any(f + e < spare for f, e in zip(free, evictable, strict=True)):
            return False
        return self.state.reserve(view, cells)

    def commit(self, chunks: list[Chunk]) -> None:
        """The step has run: its cells are valid, and what no later row can see is let go."""
        for chunk in chunks:
            sequence = chunk.sequence
            self._advance(sequence, sequence.end_after(chunk.kept))
            if sequence.computed <= sequence.prompt_tokens:
                self._keep(sequence)  # for others that begin alike

    def accept(self, sequence: Sequence, cell: int) -> None:
        """The token of the next cell is one that was drafted, whose state stands in `cell`."""
        view = sequence.view
        assert view is not None, "a sequence with a draft has a view"
        if cell != sequence.computed:
            self.state.move(view, [cell], [sequence.computed])
        self._advance(sequence, sequence.computed + 1)

    def _advance(self, sequence: Sequence, computed: int) -> None:
        """The cells up to `computed` are valid."""
        view = sequence.view
        assert view is not None, "a scheduled sequence has a view"
        if sequence.splice is not None:
            self.on_given(sequence, computed)
        sequence.computed = computed
        if computed > sequence.computed_once:
            sequence.computed_once = computed
        self.state.advance(view, computed)
        if sequence.splice is not None:
            sequence.splice.reached(computed, [table[: view.pages] for table in view.tables])
            if not sequence.remaining:
                sequence.leave_splice()
        for group, layout in enumerate(self.state.groups):
            first = self.keep.first_kept(computed, layout.window)
            if first:
                self.state.let_go(view, group, first)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's state away; it waits its turn and computes it again."""
        self.preemptions += 1
        self.running.remove(sequence)
        self.policy.end(sequence)
        self._keep(sequence)
        self._release(sequence)
        sequence.computed = 0
        sequence.fetch = None
        sequence.status = Status.WAITING
        self.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands, and free its state."""
        if sequence.status is Status.WAITING:
            self._unqueue(sequence)
            if sequence.fetch is not None:
                sequence.fetch.cancel()
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.policy.end(sequence)
            self._keep(sequence)
            if sequence.hint != PLAIN:
                tokens = sequence.token_ids(sequence.exact_cells)
                self.reuse.hint(tokens, sequence.salt, sequence.hint, 0)
        sequence.status = Status.FINISHED
        self._release(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out after a fault, wherever that has left it, and keep nothing of it."""
        if sequence in self.waiting:
            self._unqueue(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence.fetch is not None:
            sequence.fetch.cancel()
        sequence.status = Status.FINISHED
        self._release(sequence)

    # -- inside --------------------------------------------------------------------------------

    def _decode(
        self, plan: _Plan, decoding: list[Sequence], drafts: Mapping[Sequence, Tree]
    ) -> None:
        for sequence in decoding:
            if plan.rows and plan.logits and sequence.status is Status.RUNNING:
                draft = drafts.get(sequence)
                if draft is None or not self._place_draft(plan, sequence, draft):
                    self._place(plan, sequence, 1)

    def _place_draft(self, plan: _Plan, sequence: Sequence, draft: Tree) -> bool:
        """Add a row and its draft to the plan, if they fit without taking a page from anyone."""
        rows, view = 1 + len(draft), sequence.view
        assert view is not None, "a running sequence has a view"
        if rows > min(plan.rows, plan.logits):
            return False
        if not self.reserve_draft(view, sequence.computed + rows):
            return False
        plan.add(Chunk(sequence, rows, draft))
        return True

    def _prefill(self, plan: _Plan, prefilling: list[Sequence]) -> None:
        prefilling = [s for s in prefilling if s.status is Status.RUNNING]
        self._admit(prefilling, plan)
        shares = self.policy.share(prefilling, plan.rows)
        # Beside those that decode: whoever scores a prompt alone waits for nobody's next token.
        scores = self.most_scores if plan.chunks else plan.logits
        for sequence, rows in zip(prefilling, shares, strict=True):
            if sequence.status is not Status.RUNNING:
                continue  # preempted by one before it
            room = plan.logits if sequence.scored else min(plan.logits, scores)
            while rows and len(sequence.wanted_logits(rows)) > room:
                rows -= len(sequence.wanted_logits(rows)) - room
            if rows > 0:
                scores -= 0 if sequence.scored else len(sequence.wanted_logits(rows))
                self._place(plan, sequence, rows)

    def _admit(self, prefilling: list[Sequence], plan: _Plan) -> None:
        """Move waiting sequences to the running ones while seats, pages and the budget allow."""
        seats = self.most_sequences - sum(s.seats for s in self.running)
        if not self.waiting or (seats < 1 and not self.policy.pressing):
            return
        claimed = [0] * len(self.state.groups)
        for sequence in self.running:
            if sequence.orderly or not sequence.decoding:
                self._claim(claimed, sequence)
        admitted: list[Sequence] = []
        given_way = False

        crowd = _Crowd(prefilling, self.most_rows // 2, plan.rows, self._held)

        def waits(candidate: Candidate) -> int:
            return self._waits_for(cast(Sequence, candidate), prefilling)

        def make_way(sequence: Sequence) -> int:
            """The seats that another gives up for a waiting sequence."""
            older = [s for s in self.running if s not in admitted]
            other = cast(Sequence | None, self.policy.gives_way(sequence, older))
            if other is None:
                return 0
            if other in prefilling:
                prefilling.remove(other)
            plan.remove(other)
            self.preempt(other)
            return other.seats

        for candidate in self.policy.order(crowd.leaves_room, waits, seats < 1):
            sequence = cast(Sequence, candidate)
            if not sequence.ready:
                continue
            while sequence.seats > seats and (gained := make_way(sequence)):
                seats += gained
                given_way = True
            if sequence.seats > seats:
                break
            found = self._look_up(sequence)
            if not self._claim(claimed, sequence) and self.running:
                self._leave(sequence, found)
                make_way(sequence)  # there may be room in the next step
                break
            if not self._is_near(sequence, found):
                self._leave(sequence, found)
                if given_way:
                    break
                continue
            admitted.append(sequence)
            held = found if sequence.scored else self._held(sequence)
            if held:
                self.on_reused(sequence, found, held)
            if found:
                sequence.computed_once = max(sequence.computed_once, found)
            else:
                sequence.view = self.state.new_view()
            self._splice(sequence)
            sequence.status = Status.RUNNING
            self.policy.begin(sequence)
            self.running.append(sequence)
            prefilling.append(sequence)
            seats -= sequence.seats
            if given_way:
                break  # whoever gave way waits again, and the order is another
        for sequence in admitted:
            self._unqueue(sequence)

    def _unqueue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.policy.remove(sequence)

    def _look_up(self, sequence: Sequence) -> int:
        """Give a waiting sequence the state that is held of its tokens; how many they are."""
        tokens = sequence.token_ids(sequence.reusable)
        prefix = self.reuse.lookup(tokens, sequence.salt)
        if prefix is None:
            return 0
        sequence.view = self.state.adopt(prefix.tables, prefix.tokens)
        sequence.handle, sequence.computed = prefix.handle, prefix.tokens
        return prefix.tokens

    def _splice(self, sequence: Sequence) -> None:
        """Let an admitted sequence take over approximately what it asks for."""
        asked = sequence.approximation
        if asked is None or sequence.computed >= sequence.prompt_tokens:
            return
        assert isinstance(asked.ask, ReuseAsk), "checked with the request"
        reuse = self.approximate[asked.name]
        splice = reuse.open(sequence.prompt, sequence.computed, sequence.salt, asked.ask)
        if splice is not None:
            sequence.take(splice)

    def _held(self, sequence: Sequence) -> int:
        """How many of its cells are held, those included that it must compute again."""
        return self.reuse.held_tokens(sequence.token_ids(sequence.target - 1), sequence.salt)

    def _leave(self, sequence: Sequence, found: int) -> None:
        """Take back what `_look_up` gave to a sequence that cannot run yet."""
        if found:
            self._release(sequence)
            sequence.computed = 0

    @staticmethod
    def _is_fetching(sequence: Sequence) -> bool:
        return sequence.fetch is not None and not sequence.fetch.done

    def _is_near(self, sequence: Sequence, found: int) -> bool:
        """Whether the pool has all that is held of a waiting sequence, of which it has `found`
        tokens. If not, what lies farther away is fetched."""
        if not sequence.scored or sequence.scores_only:
            return True
        # What others took again is fetched again: of those who do so in turn, the one whose fetch
        # ended last finds all of it and runs.
        if sequence.fetch is None or found < sequence.fetch.reach:
            tokens = sequence.token_ids(len(sequence.tokens))
            sequence.fetch = self.reuse.fetch(tokens, sequence.salt)
        return sequence.fetch is not None and sequence.fetch.done

    def _waits_for(self, sequence: Sequence, prefilling: list[Sequence]) -> int:
        """For how many tokens of a prompt it should wait: because another is about to compute them,
        if that is worth it, or because its own are being fetched."""
        if self._is_fetching(sequence):
            return 1
        if not prefilling:
            return 0
        tokens = sequence.prompt[: sequence.reusable]
        least = 1 if sequence.patient else self.state.page_tokens
        others = ((other.prompt[: other.inexact_from], other.salt) for other in prefilling)
        return self.reuse.should_wait(tokens, sequence.salt, others, least)

    def _keep(self, sequence: Sequence) -> None:
        """Say that the sequence's cells so far are valid, for others to go on from."""
        cells = sequence.exact_cells
        if sequence.view is not None and cells:
            tokens = sequence.token_ids(cells)
            pages = -(-cells // self.state.page_tokens)
            tables = [table[:pages] for table in sequence.view.tables]
            sequence.handle = self.reuse.keep(sequence.handle, tokens, sequence.salt, tables)

    def _claim(self, claimed: list[int], sequence: Sequence) -> bool:
        """Set aside the pages that the rest of a prompt needs; False if there are too few."""
        cells = sequence.target
        if sequence.orderly:
            cells = min(sequence.most_tokens, cells + ROOM_TOKENS)
        evictable = self.evictable()
        enough = True
        for group, free in enumerate(self.state.free_pages()):
            need = self.state.pages_for(cells, group, self.most_rows)
            if sequence.view is not None:
                need -= sequence.view.pages - sequence.view.let_go[group]
                need += sequence.view.shared_tail  # which is copied when it is written to
            claimed[group] += max(0, need)
            enough = enough and claimed[group] <= free + evictable[group]
        return enough

    def _place(self, plan: _Plan, sequence: Sequence, rows: int) -> None:
        """Reserve cells for a chunk and add it to the plan, preempting others if pages run out."""
        while True:
            assert sequence.view is not None, "a running sequence has a view"
            if placed := self._reserve(sequence, rows):
                plan.add(Chunk(sequence, placed))
                return
            victim = cast(Sequence, self.policy.victim(self.running))
            if victim is sequence and sequence.splice is not None:
                sequence.leave_splice()  # what it was to take over may go; it computes the rest
                continue
            if victim is sequence and sequence.handle != NOTHING_KEPT:
                # The last resort: its cached prefix may go, but for the pages that it reads.
                self.reuse.leave(sequence.handle)
                sequence.handle = NOTHING_KEPT
                continue
            plan.remove(victim)
            self.preempt(victim)
            if victim is sequence:
                return

    def _reserve(self, sequence: Sequence, rows: int) -> int:
        """Make the cells of the next rows writable, and put what is given of those before them into
        place. How many rows there is room for; 0 if pages are short."""
        assert sequence.view is not None, "a running sequence has a view"
        if sequence.splice is None:
            return rows * self.state.reserve(sequence.view, sequence.computed + rows)
        while any(self.state.windows):
            # A window lets go of cells as it moves on: it is not led over many given ones at once.
            end = sequence.computed + self.most_rows
            fitting = int(np.searchsorted(sequence.next_cells(rows), end))
            if fitting:
                rows = fitting
                break
            if not self._place_given(sequence, end):
                return 0
            self._advance(sequence, end)
        return rows * self._place_given(sequence, sequence.end_after(rows))

    def _place_given(self, sequence: Sequence, end: int) -> bool:
        assert sequence.view is not None, "a running sequence has a view"
        if not self.state.reserve(sequence.view, end):
            return False
        self.place_given(sequence, end)
        return True

    def _release(self, sequence: Sequence) -> None:
        sequence.leave_splice()
        sequence.inexact_from = None
        if sequence.view is not None:
            self.state.release(sequence.view)
            sequence.view = None
        self.reuse.leave(sequence.handle)
        sequence.handle = NOTHING_KEPT


class _Plan:
    """A step being filled: what is in it and how much room is left."""

    def __init__(self, rows: int, logits: int) -> None:
        self.rows = rows
        self.logits = logits
        self.chunks: list[Chunk] = []

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.rows -= chunk.rows
        self.logits -= chunk.logits

    def remove(self, sequence: Sequence) -> None:
        for chunk in self.chunks:
            if chunk.sequence is sequence:
                self.chunks.remove(chunk)
                self.rows += chunk.rows
                self.logits += chunk.logits
                return


class _Crowd:
    """The prompts under way, by tenant, as far as another of the same tenant has no room beside
    them in the next step. However the policy divides that, the largest may get half of it only, so
    the others must fill the rest. A short prompt passes the long ones."""

    def __init__(
        self,
        prefilling: list[Sequence],
        short: int,
        budget: int,
        held: Callable[[Sequence], int],
    ) -> None:
        """`short` is the most rows of a short prompt; `held` tells how many cells are held."""
        self._prefilling, self._short, self._budget, self._held = prefilling, short, budget, held
        self._of: dict[str, list[Sequence]] = {}
        self._counted = 0
        self._lookups = 0

    def leaves_room(self, candidate: Candidate) -> bool:
        """Whether a waiting sequence may begin beside the others of its tenant."""
        sequence = cast(Sequence, candidate)
        for begun in self._prefilling[self._counted :]:
            self._of.setdefault(begun.tenant, []).append(begun)
        self._counted = len(self._prefilling)
        own = self._of.get(sequence.tenant)
        if own is None:
            return True
        rows = sequence.remaining
        if rows <= self._short:
            return not self._cover([s.remaining for s in own if s.remaining <= self._short])
        before = sequence.order
        if not self._cover(
            [s.remaining for s in own if s.remaining > self._short or s.order < before]
        ):
            return True
        self._lookups += 1
        if self._lookups > MOST_LOOKUPS or rows - self._held(sequence) > self._short:
            return False
        return not self._cover([s.remaining for s in own if s.remaining <= self._short])

    def _cover(self, needs: list[int]) -> bool:
        return bool(needs) and sum(needs) - max(needs) >= self._budget
