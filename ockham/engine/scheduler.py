"""Which rows the next step computes, and whose pages they go to.

A step is filled up to the token budget: running sequences' next rows first, then chunks of prompts,
so that a long prompt never stalls the others. When pages run out, the policy's victim gives up its
state and computes it again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from ockham.cache.state import State, View
from ockham.core.arrays import Ints
from ockham.core.errors import OckhamError
from ockham.core.seams import NOTHING_KEPT, ApproximateReuse, Kept, Merges, Policy, Reuse
from ockham.engine.admission import Admission
from ockham.engine.plan import Chunk, Plan
from ockham.engine.sequence import Sequence, Status
from ockham.engine.speculation.tree import Tree
from ockham.engine.transfers import Transfers


class Scheduler(Admission):
    """The plan of each step, over the sequences that wait and run.

    `most_rows` bounds the rows of a step, but for a block of a prompt that must be computed in one;
    `most_logits` those that want logits (each takes a vocabulary of memory), `most_scores` those of
    prompts that are scored, in a step that also decodes (each takes time). Where a prompt is only
    computed `whole`, it waits for a step that has room for all of it.
    """

    def __init__(
        self,
        state: State,
        policy: Policy,
        reuse: Reuse,
        approximate: Mapping[str, ApproximateReuse],
        transfers: Transfers,
        *,
        most_rows: int,
        most_sequences: int,
        most_logits: int,
        most_scores: int,
        checkpoint_tokens: int = 0,
        whole: bool = False,
    ) -> None:
        super().__init__(
            state,
            policy,
            reuse,
            approximate,
            transfers,
            most_rows=most_rows,
            most_sequences=most_sequences,
            checkpoint_tokens=checkpoint_tokens,
        )
        self.most_logits = most_logits
        self.most_scores = most_scores
        self.whole = whole
        self.steps = 0
        self._served = 0

    def schedule(self, drafts: Mapping[Sequence, Tree] | None = None) -> list[Chunk]:
        """The chunks of the next step, with their cells reserved. Empty if nothing can run.

        `drafts` are to be verified if there is room for them."""
        self.steps += 1
        self.reuse.advance(bool(self.running))
        runnable = [s for s in self.running if s.ready]
        decoding = [s for s in runnable if s.decoding]
        least = max((s.least_rows for s in runnable if not s.decoding), default=1)
        plan = Plan(max(self.most_rows, least), self.most_logits)
        if len(decoding) > min(plan.rows, plan.logits):
            decoding.sort(key=lambda s: s.last_served)  # those that waited longest first
        # A row is left to the prompts, so that running sequences cannot starve them; or a block,
        # where its rows choose together.
        prompts = len(decoding) < len(runnable) or bool(self.waiting)
        first = decoding[: plan.rows - least] if prompts and plan.rows > 1 else decoding
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
        self.reuse.advance(True)
        for served, chunk in enumerate(chunks, self._served + 1):
            chunk.sequence.last_served = served
        self._served += len(chunks)

    def reserve_draft(self, view: View, cells: int) -> bool:
        """Whether the cells up to `cells` of a running sequence can be written to without taking a
        page from anyone."""
        others = len(self.running)  # each of which may need a page for its next row
        free, evictable = self.state.free_pages(), self.evictable()
        need = self.state.need(view, cells)
        if any(f + e < n + others for f, e, n in zip(free, evictable, need, strict=True)):
            return False
        return self.state.reserve(view, cells)

    def commit(self, chunks: list[Chunk], deep: Ints | None = None) -> None:
        """The step has run: its cells are valid, and what no later row can see is let go. `deep` is
        `StepOutput.deep` of a model with passes that rows may leave out."""
        row = 0
        for chunk in chunks:
            sequence = chunk.sequence
            own = None if deep is None else deep[:, row : row + chunk.rows]
            row += chunk.rows
            self._advance(sequence, sequence.end_after(chunk.kept), own)
            if sequence.computed <= sequence.prompt_tokens:
                self._keep(sequence)  # for others that begin alike

    def accept(self, sequence: Sequence, cell: int) -> None:
        """The token of the next cell is one that was drafted, whose state stands in `cell`."""
        view = sequence.view
        assert view is not None, "a sequence with a draft has a view"
        if cell != sequence.computed:
            self.state.move(view, [cell], [sequence.computed])
        self._advance(sequence, sequence.computed + 1)

    # -- inside --------------------------------------------------------------------------------

    def _advance(self, sequence: Sequence, computed: int, deep: Ints | None = None) -> None:
        """The cells up to `computed` are valid: see `State.advance`."""
        view = sequence.view
        assert view is not None, "a scheduled sequence has a view"
        if sequence.splicing is not None:
            self.transfers.given(sequence, computed)
        sequence.computed = computed
        if computed > sequence.computed_once:
            sequence.computed_once = computed
        self.state.advance(view, computed, deep)
        if sequence.splicing is not None:
            sequence.splicing.splice.reached(computed, view.tables)
            if not sequence.remaining:
                sequence.leave_splice()
        if self.state.sliding:
            self.state.slide(view)

    def _decode(
        self, plan: Plan, decoding: list[Sequence], drafts: Mapping[Sequence, Tree]
    ) -> None:
        for sequence in decoding:
            if plan.rows and plan.logits > 0 and sequence.status is Status.RUNNING:
                draft = drafts.get(sequence)
                if draft is None or not self._place_draft(plan, sequence, draft):
                    self._place(plan, sequence, 1)

    def _place_draft(self, plan: Plan, sequence: Sequence, draft: Tree) -> bool:
        """Add a row and its draft to the plan, if they fit without taking a page from anyone."""
        rows, view = 1 + len(draft), sequence.view
        assert view is not None, "a running sequence has a view"
        if rows > min(plan.rows, plan.logits):
            return False
        if sequence.border is not None and (
            sequence.border == sequence.computed or rows > sequence.rows_to_border
        ):
            return False
        if not self.reserve_draft(view, sequence.computed + rows):
            return False
        plan.add(Chunk(sequence, rows, draft))
        return True

    def _prefill(self, plan: Plan, prefilling: list[Sequence]) -> None:
        prefilling = [s for s in prefilling if s.status is Status.RUNNING]
        self._admit(prefilling, plan)
        shares = self.policy.share(prefilling, plan.rows)
        # Beside those that decode: whoever scores a prompt alone waits for nobody's next token.
        scores = self.most_scores if plan.chunks else plan.logits
        for sequence, rows in zip(prefilling, shares, strict=True):
            if sequence.status is not Status.RUNNING:
                continue  # preempted by one before it
            if sequence.border is not None:
                rows = min(rows, sequence.rows_to_border)
            rows = self.checkpoints.until(sequence, rows)
            if self.whole:
                rows = sequence.remaining if sequence.remaining <= plan.rows else 0
            rows = min(rows, plan.rows)  # a block may have taken more than its share
            room = max(0, plan.logits if sequence.scored else min(plan.logits, scores))
            if sequence.least_rows > 1:  # whatever logits the rows of a block want
                if not plan.chunks:
                    plan.rows = max(plan.rows, sequence.least_rows)
                rows = sequence.whole_rows(rows, plan.rows)
                room = max(room, sequence.least_rows)
            while rows > 0 and len(sequence.wanted_logits(rows)) > room:
                rows -= len(sequence.wanted_logits(rows)) - room
                rows = sequence.whole_rows(rows, rows)
            if rows > 0:
                scores -= 0 if sequence.scored else len(sequence.wanted_logits(rows))
                self._place(plan, sequence, rows)

    def _place(self, plan: Plan, sequence: Sequence, rows: int) -> None:
        """Reserve cells for a chunk and add it to the plan, preempting others if pages run out."""
        while True:
            assert sequence.view is not None, "a running sequence has a view"
            if placed := self._reserve(sequence, rows):
                plan.add(Chunk(sequence, placed))
                return
            victim = cast(Sequence, self.policy.victim(self.running))
            if victim is sequence and sequence.splicing is not None:
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
        if sequence.border == sequence.computed and not self._drop(sequence):
            return 0
        if sequence.splicing is None:
            end = sequence.computed + rows
            return rows * self.state.reserve(sequence.view, end, certain=end)
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

    def _drop(self, sequence: Sequence) -> bool:
        """Free the cells that do not stay of a sequence that has come to its border. False, and
        nothing is done, if that takes pages and they are short."""
        view, keeping = sequence.view, sequence.keeping
        assert view is not None, "a running sequence has a view"
        assert keeping is not None, "only then has it a border"
        kept: dict[int, Ints] = {}
        merges: dict[int, Merges] = {}
        for group, held in enumerate(view.groups):
            if group not in self.state.sliding:
                places, own = held.places(view.tokens), self.state.held(view, group)
                if keeping.reads:
                    keeping.read(group, places, own)
                if keeping.reorders is None:
                    found = keeping.reduce(group, places, own)
                else:
                    found = Kept(self.state.alike(view, group, keeping.reorders))
                if found is not None:
                    kept[group] = found.cells
                    if found.merges is not None:
                        merges[group] = found.merges
        if kept:
            # A store knows a page by one name, and what is reordered has another.
            if not self.state.compact(view, kept, merges, apart=keeping.reorders is not None):
                if (
                    keeping.reorders
                    and self.running == [sequence]
                    and sequence.handle == NOTHING_KEPT
                ):
                    raise OckhamError(
                        f"{keeping.name} copies the context of {keeping.reorders.stop} tokens, and "
                        "what is pinned leaves no room for that in the pool; unpin some of it, or "
                        "raise kv_cache_memory_bytes."
                    )
                return False
            # It keeps nothing more for others, and reads nothing more of what is kept.
            self.reuse.leave(sequence.handle)
            sequence.handle = NOTHING_KEPT
            if keeping.reorders is not None:
                self._keep_reordered(sequence, keeping.reorders)
        keeping.dropped(kept, view.tokens)
        sequence.border = keeping.border(sequence.computed)
        return True

    def _place_given(self, sequence: Sequence, end: int) -> bool:
        assert sequence.view is not None, "a running sequence has a view"
        if not self.state.reserve(sequence.view, end):
            return False
        self.transfers.place(sequence, end)
        return True
