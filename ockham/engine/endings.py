"""How sequences and their requests end: as they should, by a fault, or given up."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

from ockham.core.errors import FAULT
from ockham.core.ledger import Ledger
from ockham.core.logs import of_request
from ockham.engine import billing
from ockham.engine.assemble import Assembly
from ockham.engine.batch import Walk
from ockham.engine.group import Group
from ockham.engine.messages import Delta
from ockham.engine.runner.runner import Runner
from ockham.engine.sequence import Sequence, Status

log = logging.getLogger("ockham.engine")


class Endings:
    """Ends sequences. With the last of a request's, the request's bill is on its last delta."""

    def __init__(self, engine: Assembly, runner: Runner) -> None:
        self._engine, self._runner = engine, runner

    def end(
        self,
        sequence: Sequence,
        delta: Delta,
        reason: str,
        stop_reason: int | str | None = None,
        walk: Walk | None = None,
    ) -> Delta:
        """Finish a sequence, and its request with the last of its choices, unless a search decides
        what becomes of that. `walk` is the way through its draft, if its last step had one."""
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        if sequence.text is not None and not (reason == "stop" and isinstance(stop_reason, str)):
            rest, stop = sequence.text.finish()
            delta.text += rest
            if stop is not None and sequence.generated >= sequence.params.min_tokens:
                reason, sequence.stop_reason = "stop", stop
        delta.finish_reason, delta.stop_reason = reason, sequence.stop_reason
        if walk is not None:
            self.end_walk(walk)
        engine = self._engine
        group = engine.groups[sequence.request_id]
        if group.search is not None and sequence.status is not Status.APART:
            sequence.status = Status.ENDED  # its search may go on from what it has computed
            return delta
        engine.speculation.forget(sequence)
        engine.scheduler.finish(sequence)
        if group.search is None and group.complete:
            self.close(sequence.request_id, delta)
        return delta

    def end_walk(self, walk: Walk) -> None:
        """Learn from what became of a sequence's draft, and book it."""
        engine = self._engine
        engine.speculation.learn(walk.part.sequence, walk.tree, walk.followed)
        billing.book_draft(walk, engine.speculation.names, engine.cost, engine.ledger)

    def guarded(
        self, sequence: Sequence, work: Callable[..., Delta | None], *args: Any
    ) -> Delta | None:
        """What some work on one sequence gives. A fault of it ends that request, and no other."""
        if sequence.finish_reason is not None:
            return None
        try:
            return work(*args)
        except Exception as error:
            return self.fault(sequence, error)

    def fault(self, sequence: Sequence, error: Exception) -> Delta:
        """End a request over which something failed that concerns no other; its last delta."""
        log.error(
            "A request met a fault of the engine.",
            exc_info=error,
            extra=of_request(sequence.request_id),
        )
        self._runner.settle()
        group = self._engine.remove_group(sequence.request_id)
        bill = sequence.ledger if group is None else group.close()
        for choice in [sequence] if group is None else group.sequences:
            self._drop(choice)
        return Delta(
            sequence.request_id,
            sequence.index,
            finish_reason="error",
            stop_reason=FAULT,
            finished=True,
            ledger=bill,
        )

    def abort(self, request_id: str) -> list[Delta]:
        """Give up a request and free its state. Ids that are not running are ignored."""
        group = self._engine.groups.get(request_id)
        if group is None:
            return []
        if group.search is not None:
            return self._abort_search(request_id, group)
        deltas: list[Delta] = []
        for sequence in group.sequences:
            if sequence.finish_reason is None:
                delta = Delta(request_id, sequence.index)
                deltas.append(self.guarded(sequence, self.end, sequence, delta, "abort") or delta)
        if deltas and not deltas[-1].finished:  # choices that were still to be forked
            self.close(request_id, deltas[-1])
        return deltas

    def drop_all(self) -> None:
        """Take every request out, after a step that failed: what it left half done is not gone on
        with, and all pages are free again or kept by what keeps them."""
        self._runner.forget_decoding()
        groups, scheduler = list(self._engine.groups.values()), self._engine.scheduler
        self._engine.groups.clear()
        self._engine.answered.clear()
        for group in self._engine.searched.values():
            if group.search is not None:
                group.search.close()
        self._engine.searched.clear()
        self._engine.companions.drop_all()
        scheduler.reserved_seats = 0
        left = [*scheduler.running, *scheduler.waiting]
        every = itertools.chain.from_iterable(group.sequences for group in groups)
        for sequence in dict.fromkeys([*every, *left]):
            self._drop(sequence)
            self._engine.release(sequence.request_id)

    def close(self, request_id: str, delta: Delta) -> None:
        """Put the request's bill on its last delta."""
        self._runner.settle()
        group = self._engine.remove_group(request_id)
        assert group is not None, "a request is closed once"
        bill, first, now = group.close(), group.first, self._engine.clock()
        times = Ledger()
        start = first.start_s if first.start_s is not None else now
        token = first.first_token_s if first.first_token_s is not None else now
        times.queue_s = start - first.arrival_s
        times.prefill_s = max(0.0, token - start)
        times.decode_s = now - max(token, start)
        bill.add(times)
        self._engine.ledger.add(times)
        delta.finished, delta.ledger = True, bill

    # -- inside --------------------------------------------------------------------------------

    def _abort_search(self, request_id: str, group: Group) -> list[Delta]:
        """Nothing was told of the branches; each of the choices ends empty."""
        self._runner.forget_decoding()
        for sequence in group.sequences:
            if sequence.status is not Status.FINISHED:
                group.release(sequence)
                sequence.finish_reason = "abort"
        choices = range(group.first.params.n)
        deltas = [Delta(request_id, index, finish_reason="abort") for index in choices]
        self.close(request_id, deltas[-1])
        return deltas

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever was being done with it."""
        self._engine.speculation.forget(sequence)
        self._engine.scheduler.drop(sequence)
        sequence.finish_reason = "error"
