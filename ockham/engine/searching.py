"""Asks the searches of requests what is to be done, and does it."""

from __future__ import annotations

from collections.abc import Sequence as Many
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

from ockham.core.errors import OckhamError
from ockham.core.outputs import Logprob, PositionLogprobs
from ockham.core.seams import (
    Action,
    Blend,
    Continue,
    Drop,
    End,
    Finish,
    Fork,
    Hold,
    Say,
    Split,
    Write,
)
from ockham.engine import search_billing
from ockham.engine.assemble import Assembly
from ockham.engine.endings import Endings
from ockham.engine.group import Group, OwnBranch, Told
from ockham.engine.harvest import Harvest
from ockham.engine.messages import Delta
from ockham.engine.runner.runner import Runner
from ockham.engine.sequence import Status
from ockham.engine.slow_grammars import SlowGrammars


class Searching:
    """The groups of which a search decides what becomes of their branches. Nothing that a branch
    says is told to a caller before the search has finished."""

    def __init__(
        self,
        engine: Assembly,
        runner: Runner,
        endings: Endings,
        slow_grammars: SlowGrammars,
        harvest: Harvest,
    ) -> None:
        self._engine, self._runner, self._endings = engine, runner, endings
        self._slow_grammars, self._harvest = slow_grammars, harvest

    def after(self, deltas: list[Delta]) -> list[Delta]:
        """What is told of a step, of which `deltas` are what all sequences have said."""
        groups = self._engine.searched
        told: list[Delta] = []
        said: set[str] = set()
        for delta in deltas:
            group = groups.get(delta.request_id)
            if group is None or delta.finished or delta.progress is not None:
                told.append(delta)
            else:
                group.branches[delta.index].told.add(delta)
                said.add(delta.request_id)
        for request_id, group in list(groups.items()):
            if _has_news(group, request_id in said):
                told += self._ask(request_id, group)
        return told

    def unblock(self) -> bool:
        """Nothing can run. If that is because seats are kept for branches to come, give these back;
        if branches that their searches hold keep others from it, take the state of one of them
        away. Whether anything was done."""
        if any(group.give_back() for group in self._engine.searched.values()):
            return True
        scheduler = self._engine.scheduler
        held = [s for s in scheduler.running if s.held]
        if held and any(s.ready for s in scheduler.waiting):
            self._runner.forget_decoding()
            scheduler.preempt(held[-1])
            return True
        return False

    def wait(self, most_s: float) -> bool:
        """Sleep until something is done that a search waits for, if there is any. Whether there
        was."""
        waited = [f for g in self._engine.searched.values() if g.search for f in g.search.waits]
        if waited:
            wait(waited, most_s, FIRST_COMPLETED)
        return bool(waited)

    # -- inside --------------------------------------------------------------------------------

    def _ask(self, request_id: str, group: Group) -> list[Delta]:
        """Ask a search until there is something to wait for. An error of it ends its request."""
        assert group.search is not None, "only a search is asked"
        self._runner.forget_decoding()
        try:
            while True:
                ended = _ended(group)
                for branch in ended:
                    group.vacate(branch.sequence)
                for action in group.search.after(group.branches):
                    if isinstance(action, Finish):
                        return self._finish(request_id, group, action)
                    self._do(group, action)
                for branch in ended:
                    if branch.number in group.branches:
                        group.release(branch.sequence)
                group.trim()
                if _ended(group):
                    continue  # by what was just done
                live = [b for b in group.branches.values() if b.finish_reason is None]
                held = all(branch.sequence.held for branch in live)
                if held and not group.search.waits:
                    raise OckhamError(f"the search {group.name!r} waits for nothing")
                return []
        except Exception as error:
            return [self._endings.fault(group.first, error)]

    def _do(self, group: Group, action: Action) -> None:
        branch = group.branches[action.branch]
        sequence = branch.sequence
        if isinstance(action, Say):
            entry = None
            if branch.logits is not None:
                entry = self._harvest.logprobs(branch.logits, sequence, action.token)
            _go_on(branch)
            branch.told.add(self._harvest.push(sequence, action.token, entry))
        elif isinstance(action, Blend):
            _go_on(branch)
            embedded = self._engine.own_model.embed(action.tokens)
            sequence.push(action.tokens[0])
            sequence.inputs.append(np.array(action.weights, np.float32) @ embedded)
        elif isinstance(action, Fork):
            child = group.fork(sequence, action.number, action.tokens)
            if child.unsettled:
                self._slow_grammars.leave(child)
        elif isinstance(action, Split):
            for child in group.split(sequence, action.numbers, action.tokens):
                if child.unsettled:
                    self._slow_grammars.leave(child)
        elif isinstance(action, Write):
            self._write(branch, action)
        elif isinstance(action, End):
            if sequence.finish_reason is None:
                delta = Delta(sequence.request_id, sequence.index)
                branch.told.add(self._endings.end(sequence, delta, "stop"))
        elif isinstance(action, Drop):
            group.drop(sequence)
        elif isinstance(action, Hold):
            sequence.held = True
        elif isinstance(action, Continue):
            if branch.due:
                raise ValueError(f"branch {branch.number} is due: say what comes next")
            sequence.held = False

    def _write(self, branch: OwnBranch, write: Write) -> None:
        """A branch says these tokens, of which one before the last may end it."""
        sequence = branch.sequence
        if sequence.chosen or sequence.grammar is not None:
            raise ValueError(f"in branch {branch.number} nothing can be written")
        if write.scored and sequence.unscored is None:
            sequence.unscored = len(sequence.tokens)
        for token in write.tokens:
            if sequence.finish_reason is not None:
                break
            entry: PositionLogprobs | None = None
            if sequence.params.logprobs is not None:
                entry = {token: Logprob(0.0, 1)}  # it was not left to chance
            if sequence.token_scores is not None:
                sequence.token_scores.add_unknown()
            branch.told.add(self._harvest.push(sequence, token, entry, ends=write.ends))

    def _finish(self, request_id: str, group: Group, finish: Finish) -> list[Delta]:
        """Answer a request. Choices that the search does not have are empty."""
        engine, first = self._engine, group.first
        if first.held and not first.computed_once:
            search_billing.book_unread(first, group.name, engine.cost, engine.ledger)
        if finish.spared:
            search_billing.book_spared(first, finish.spared, group.name, engine.cost, engine.ledger)
        deltas = []
        for index in range(first.params.n):
            if index >= len(finish.choices):
                deltas.append(Delta(request_id, index, finish_reason="stop"))
                continue
            choice = finish.choices[index]
            reason = "length" if finish.cut else "stop"
            if isinstance(choice, int):
                deltas.append(self._ranked(group.branches[choice], index, reason))
            else:
                deltas.append(self._written(group, index, choice, reason))
        if finish.report is not None:
            deltas[0].report = {group.name: dict(finish.report)}
        for sequence in group.sequences:
            if sequence.status is not Status.FINISHED:
                group.release(sequence)
                sequence.finish_reason = sequence.finish_reason or "stop"
        self._endings.close(request_id, deltas[-1])
        return deltas

    def _ranked(self, branch: OwnBranch, index: int, reason: str) -> Delta:
        """All that a branch has said, as a choice. If it still runs, it ends here for a reason."""
        sequence = branch.sequence
        if sequence.finish_reason is None:
            delta = Delta(sequence.request_id, sequence.index)
            branch.told.add(self._endings.end(sequence, delta, reason))
        delta = branch.told.delta(sequence, index)
        if index:
            delta.prompt_logprobs = None  # which come with the first choice
        return delta

    def _written(self, group: Group, index: int, tokens: Many[int], reason: str) -> Delta:
        """A choice that says these tokens, which may end it before the last one; else it ends for
        a reason."""
        first, told = group.first, Told()
        sequence = first.choice(index, None if first.text is None else first.text.fresh())
        sequence.status = Status.APART
        group.book(sequence.ledger)
        for token in tokens:
            told.add(self._harvest.push(sequence, token, None))
            if sequence.finish_reason is not None:
                break
        else:
            delta = Delta(sequence.request_id, index)
            told.add(self._endings.end(sequence, delta, reason))
        return told.delta(sequence, index)


def _ended(group: Group) -> list[OwnBranch]:
    """The branches that have ended since the search was asked last: their state is still there."""
    return [b for b in group.branches.values() if b.sequence.status is Status.ENDED]


def _has_news(group: Group, said: bool) -> bool:
    """Whether the search is to be asked."""
    assert group.search is not None, "only a search is asked"
    if group.search.chooses and any(branch.came_due for branch in group.branches.values()):
        for branch in group.branches.values():
            branch.came_due = False
        return True
    if (said and group.search.watches) or _ended(group):
        return True
    return any(each.done() for each in group.search.waits)


def _go_on(branch: OwnBranch) -> None:
    """Something comes next in a branch that waits for it."""
    if not branch.due:
        raise ValueError(f"branch {branch.number} is not due")
    branch.due = branch.sequence.held = False
    branch.logits = None
