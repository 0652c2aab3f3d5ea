"""Which sequences wait, which of them begin, and how those that run come to an end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ockham.cache.state import State, View
from ockham.core.arrays import common_prefix
from ockham.core.asks import ReuseAsk
from ockham.core.errors import OckhamError
from ockham.core.seams import (
    NOTHING_KEPT,
    PLAIN,
    ApproximateReuse,
    Candidate,
    Fetch,
    Policy,
    Reuse,
)
from ockham.engine import reordering
from ockham.engine.checkpoints import Checkpoints
from ockham.engine.crowd import Crowd
from ockham.engine.plan import Plan
from ockham.engine.sequence import Sequence, Status
from ockham.engine.transfers import Transfers
from ockham.engine.waiting import Waiting

ROOM_TOKENS = 64
"""What an orderly sequence is given room to generate at least before another begins: most answers
of a batch are short, and room for the longest that is allowed would stand empty."""


class Admission:
    """Waiting and running sequences, and the state that those hold which run."""

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
        checkpoint_tokens: int = 0,
    ) -> None:
        self.state = state
        self.policy = policy
        self.reuse = reuse
        self.approximate = approximate
        self.transfers = transfers
        self.most_rows = most_rows
        self.most_sequences = most_sequences
        self.checkpoints = Checkpoints(state, checkpoint_tokens)
        self.waiting = Waiting()
        """In the order of arrival, also those that were preempted."""
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.reserved_seats = 0
        """Seats that no sequence holds, and that are kept for branches of searches."""

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)
        try:
            self.policy.add(sequence)
        except BaseException:
            self.waiting.remove(sequence)
            raise

    def fork(self, parent: Sequence, child: Sequence, cells: int) -> bool:
        """Start `child` with the state of the first `cells` cells of `parent`. False, and nothing
        is done, if that state is not there."""
        keeping = None if parent.keeping is None else parent.keeping.fork(cells)
        if parent.keeping is not None and keeping is None:
            return False
        view = None if parent.view is None else self._forked(parent.view, cells)
        if view is None:
            return False
        child.view = view
        if cells == parent.computed:  # else it may go on in another way than what is kept
            child.handle = self.reuse.share(parent.handle)
        child.computed = cells
        child.computed_once = max(child.computed_once, cells)
        child.inexact_from = parent.inexact_from
        if keeping is not None:
            child.keep_by(keeping)
        child.status = Status.RUNNING
        self.running.append(child)
        self.policy.begin(child)
        return True

    @property
    def free_seats(self) -> int:
        """How many more sequences may run."""
        return self.most_sequences - self.reserved_seats - sum(s.seats for s in self.running)

    def resume(self, sequence: Sequence, view: View) -> None:
        """Run a waiting sequence on from `view`, whose cells hold the state of its first tokens."""
        sequence.view = view
        sequence.computed = sequence.computed_once = view.tokens
        sequence.find_border()
        self.policy.begin(sequence)
        self._unqueue(sequence)
        sequence.status = Status.RUNNING
        self.running.append(sequence)

    def take_in(self, sequence: Sequence, view: View | None) -> None:
        """Go on with a sequence that comes from elsewhere, and with its state if it has any."""
        once = sequence.computed_once
        self.add(sequence)
        if view is not None:
            cells = view.tokens
            if not self._goes_on_from(sequence, view):
                return
            self.resume(sequence, view)
            sequence.computed_once = max(once, cells)
            if sum(s.seats for s in self.running) > self.most_sequences:
                self.preempt(sequence)

    def _goes_on_from(self, sequence: Sequence, view: View) -> bool:
        """Cut a view that another engine computed down to where the sequence may go on. False, and
        it is released, if that is nowhere."""
        cells = sequence.goes_on_at(view.tokens)
        try:
            if cells < view.tokens:
                self.state.truncate(view, cells)
        except OckhamError:  # a window has let go of cells that are seen from there
            self.state.release(view)
            return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's state away; it waits its turn and computes it again."""
        self.preemptions += 1
        self.running.remove(sequence)
        self.policy.end(sequence)
        self._keep(sequence)
        self._release(sequence)
        sequence.computed = 0
        if sequence.pool is not None:
            sequence.pool.reset()
        if sequence.keeping is not None:
            sequence.keep_by(sequence.keeping.fresh())
        sequence.redone_by = None
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
        if not self.running and not self.waiting:  # what is left to copy holds nobody up
            self.reuse.advance(False)

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

    def evictable(self) -> list[int]:
        """About how many pages of each group could be given back by what keeps them."""
        every: list[Reuse | ApproximateReuse] = [self.reuse, *self.approximate.values()]
        return [sum(pages) for pages in zip(*(each.evictable() for each in every), strict=True)]

    # -- inside --------------------------------------------------------------------------------

    def _forked(self, view: View, cells: int) -> View | None:
        """A second view of the first `cells` tokens' state; None if cells that it needs were
        dropped, or let go by a window."""
        twin = self.state.fork(view)
        try:
            if cells != twin.tokens:
                self.state.truncate(twin, cells)
        except OckhamError:
            self.state.release(twin)
            return None
        return twin

    def _admit(self, prefilling: list[Sequence], plan: Plan) -> None:
        """Move waiting sequences to the running ones while seats, pages and the budget allow."""
        seats = self.free_seats
        if not self.waiting or (seats < 1 and not self.policy.pressing):
            return
        claimed = [0] * len(self.state.groups)
        for sequence in self.running:
            if sequence.orderly or not sequence.decoding:
                self._claim(claimed, sequence)
        admitted: list[Sequence] = []
        given_way = False

        crowd = Crowd(prefilling, self.most_rows // 2, plan.rows, self._held)

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
                self.transfers.reused(sequence, found, held)
            if found:
                sequence.computed_once = max(sequence.computed_once, found)
            else:
                sequence.view = self.state.new_view()
            self._splice(sequence)
            self._part(sequence)
            sequence.status = Status.RUNNING
            self.policy.begin(sequence)
            self.running.append(sequence)
            prefilling.append(sequence)
            seats -= sequence.seats
            if given_way:
                break  # whoever gave way waits again, and the order is another
        for sequence in admitted:
            self._unqueue(sequence)

    def _part(self, sequence: Sequence) -> None:
        """Have an admitted sequence leave a checkpoint where it parts from those before it."""
        if self.checkpoints.kept and sequence.shares:
            tokens = sequence.token_ids(sequence.reusable)
            self.checkpoints.part(sequence, self.reuse.agreed_tokens(tokens, sequence.salt))

    def _unqueue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.policy.remove(sequence)

    def _look_up(self, sequence: Sequence) -> int:
        """Give a waiting sequence the state that is held of its tokens; how many they are."""
        if found := self._look_up_reordered(sequence):
            return found
        tokens = sequence.token_ids(sequence.reusable)
        prefix = self.reuse.lookup(tokens, sequence.salt)
        if prefix is None:
            return 0
        if (whole := sequence.goes_on_at(prefix.tokens)) < prefix.tokens:
            self.reuse.leave(prefix.handle)
            prefix = self.reuse.lookup(tokens[:whole], sequence.salt) if whole else None
            if prefix is None:
                return 0
        sequence.view = self.state.adopt(prefix.tables, prefix.tokens)
        sequence.handle, sequence.computed = prefix.handle, prefix.tokens
        sequence.find_border()
        return prefix.tokens

    def _look_up_reordered(self, sequence: Sequence) -> int:
        """The same of cells that its pattern reorders, which are held all of them or none."""
        cells = None if sequence.keeping is None else sequence.keeping.reorders
        if cells is None or sequence.reusable < cells.stop:
            return 0
        tokens = sequence.token_ids(cells.stop)
        prefix = self.reuse.lookup(tokens, reordering.key(sequence.salt, cells, tokens))
        if prefix is None:
            return 0
        if prefix.tokens < cells.stop:
            self.reuse.leave(prefix.handle)
            return 0
        sequence.view = self.state.adopt(prefix.tables, prefix.tokens, reordered=True)
        sequence.handle, sequence.computed = prefix.handle, prefix.tokens
        sequence.find_border()
        return prefix.tokens

    def _keep_reordered(self, sequence: Sequence, cells: range) -> None:
        """Say that the sequence's first cells stand in the order that its pattern asks for."""
        assert sequence.view is not None, "a running sequence has a view"
        self.transfers.reordered(sequence, cells)
        tokens, pages = sequence.token_ids(cells.stop), -(-cells.stop // self.state.page_tokens)
        tables = [table[:pages] for table in sequence.view.tables]
        salt = reordering.key(sequence.salt, cells, tokens)
        if sequence.shares:
            sequence.handle = self.reuse.keep(sequence.handle, tokens, salt, tables)

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
            sequence.find_border()

    @staticmethod
    def _is_fetching(sequence: Sequence) -> bool:
        return sequence.fetch is not None and not sequence.fetch.done

    def _is_near(self, sequence: Sequence, found: int) -> bool:
        """Whether the pool has all that is held of a waiting sequence, of which it has `found`
        tokens. If not, what lies farther away is fetched."""
        if not sequence.scored or sequence.scores_only or sequence.reordered:
            return True
        # What others took again is fetched again: of those who do so in turn, the one whose fetch
        # ended last finds all of it and runs.
        if sequence.fetch is None or found < sequence.goes_on_at(sequence.fetch.reach):
            sequence.fetch = self._fetch(sequence)
        return sequence.fetch is not None and sequence.fetch.done

    def _fetch(self, sequence: Sequence) -> Fetch | None:
        """Have what lies farther away brought near: cells that its pattern reorders, if they are
        held in that order, else those of its tokens."""
        cells = None if sequence.keeping is None else sequence.keeping.reorders
        if cells is not None and sequence.reusable >= cells.stop:
            tokens = sequence.token_ids(cells.stop)
            fetch = self.reuse.fetch(tokens, reordering.key(sequence.salt, cells, tokens))
            if fetch is None or not fetch.done:
                return fetch
        return self.reuse.fetch(sequence.token_ids(sequence.findable), sequence.salt)

    def _waits_for(self, sequence: Sequence, prefilling: list[Sequence]) -> int:
        """For how many tokens of a prompt it should wait: because another is about to compute them,
        if that is worth it, or because its own are being fetched."""
        if self._is_fetching(sequence):
            return 1
        if not prefilling:
            return 0
        tokens = sequence.prompt[: sequence.reusable]
        least = 1 if sequence.request.patient else self.state.page_tokens
        others = [(other.prompt[: other.exact_until], other.salt) for other in prefilling]
        shared = self.reuse.should_wait(tokens, sequence.salt, others, least)
        if shared and self.checkpoints.kept:
            for other, (theirs, salt) in zip(prefilling, others, strict=True):
                if salt == sequence.salt:
                    self.checkpoints.part(other, common_prefix(tokens, theirs))
        return shared

    def _claim(self, claimed: list[int], sequence: Sequence) -> bool:
        """Set aside the pages that the rest of a prompt needs; False if there are too few."""
        cells = sequence.target
        if sequence.orderly:
            cells = min(sequence.most_tokens, cells + ROOM_TOKENS)
        keeping, copied = sequence.keeping, 0
        if keeping is not None and keeping.reorders and not sequence.reordered:
            copied = keeping.reorders.stop  # if others hold them too
        evictable = self.evictable()
        enough = True
        for group, free in enumerate(self.state.free_pages()):
            most = cells
            if keeping is not None and group not in self.state.sliding:
                most = keeping.most_cells_of(group, cells) + copied
            need = self.state.pages_for(most, group, self.most_rows)
            if sequence.view is not None:
                held = sequence.view.groups[group]
                need -= held.pages - held.let_go
                need += held.shared_tail  # which is copied when it is written to
            claimed[group] += max(0, need)
            enough = enough and claimed[group] <= free + evictable[group]
        return enough

    def _keep(self, sequence: Sequence) -> None:
        """Say that the sequence's cells so far are valid, for others to go on from."""
        cells = sequence.exact_cells
        if sequence.view is not None and cells and not sequence.view.compacted_at:
            tokens = sequence.token_ids(cells)
            pages = -(-cells // self.state.page_tokens)
            tables = [table[:pages] for table in sequence.view.tables]
            tables = self.checkpoints.of(sequence, cells, tables)
            sequence.handle = self.reuse.keep(sequence.handle, tokens, sequence.salt, tables)

    def _release(self, sequence: Sequence) -> None:
        sequence.leave_splice()
        sequence.inexact_from = None
        sequence.checkpoint_at = 0
        sequence.partings.clear()
        if sequence.view is not None:
            self.state.release(sequence.view)
            sequence.view = None
        self.reuse.leave(sequence.handle)
        sequence.handle = NOTHING_KEPT
