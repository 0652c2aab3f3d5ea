"""What is drafted, for which sequence, and how much of it: as much as makes the engine faster.

Before each step of decoding, the controller asks the drafters what may come next. It knows two
things: how often each kind of drafted token has been accepted lately, and how much longer a step
takes for each row more. From both it takes the tokens that bring the most tokens a second, none
included (SmartSpec, Liu et al. 2024, arXiv:2406.14066). What it chooses decides speed alone: the
tokens of a sequence are the same whatever was drafted.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import msgspec

from ockham.core.clock import Clock
from ockham.core.seams import Drafter, Floats, Wish
from ockham.core.speculative import DraftStats, SpeculativeConfig
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.account import Account
from ockham.engine.speculation.known import KnownDrafter, KnownSequence
from ockham.engine.speculation.streams import Observers, Streams
from ockham.engine.speculation.tempo import Tempo
from ockham.engine.speculation.tree import ROOT, Tree, choose

_MOST_ROWS = 64
"""Drafted rows of a step: more never paid."""
_CERTAIN = 0.8
"""Where a token has this chance already, no draft model is asked."""
_HELD_UP = 4.0
"""Drafting that took more than so many times what is usual was held up by something else."""


class _Asked(NamedTuple):
    """A sequence for which drafters are asked, the tree that their drafts go into, and how many
    drafted tokens it has room for."""

    sequence: Sequence
    tree: Tree
    known: KnownSequence
    left: int


class Speculation:
    """The controller of an engine's drafters. What drafting and steps take is told by `clock`.

    Where layers leave a state at the end of each page, of `page_tokens` tokens, of a draft the
    likeliest branch alone reaches that far."""

    def __init__(
        self,
        config: SpeculativeConfig,
        drafters: list[Drafter],
        clock: Clock = time.monotonic,
        *,
        page_tokens: int | None = None,
    ) -> None:
        self._clock = clock
        self._page_tokens = page_tokens
        self.config = config
        self.drafters = drafters
        self.names = [drafter.name for drafter in drafters]
        self._drafters = [KnownDrafter(number, each) for number, each in enumerate(drafters)]
        self._asking = sorted(self._drafters, key=lambda each: each.joint is not None)
        """The drafters in the order in which they are asked: those that take time come last."""
        self.streams = Streams(self._drafters)
        marks = [each.marks for each in drafters if each.marks is not None]
        self.marks: Floats | None = marks[0] if marks else None
        """The inputs of the marks that drafts may have."""
        self._any_constraining = any(each.constrained for each in self._drafters)
        self.tempo = Tempo()
        self.account = Account()
        self.counters = DraftStats()
        self._steps = 0
        self._token_s = self._row_s = 0.0
        """Seconds that a token is worth, and seconds that a row costs, as of the latest plan."""
        self._saving = False
        """Whether the account is spent, so that only what is certain is drafted."""
        self._certain = 0
        """Drafted rows of the latest step that a grammar forces."""
        self._planned_s = self._usual_s = self._read_s = 0.0
        """Seconds of drafting: for the latest step, usually, and spent on reading prompts."""
        self._hoped: list[list[float]] | None = None
        self._hoped_for = -1.0

    def __bool__(self) -> bool:
        return bool(self.drafters)

    @property
    def learns(self) -> bool:
        """Whether a drafter learns from one sequence for another."""
        return any(drafter.learns for drafter in self.drafters)

    @property
    def observers(self) -> Observers:
        """Of each sequence, the drafters' streams that may want to know of its rows now."""
        if self.config.adaptive and not self.account.open:
            return self.streams.readers
        return self.streams.observers

    def save(self) -> None:
        """The engine is no more: drafters save what they keep."""
        for drafter in self.drafters:
            drafter.save()

    def plan(self, running: list[Sequence], room: int) -> list[Tree | None] | None:
        """A tree for each of these sequences, all of which decode; None if nothing is worth a row.
        `room` is how many rows a step may have beside theirs."""
        began, self._read_s = self._clock(), 0.0
        trees = self._plan(running, room)
        self._planned_s = self._clock() - began
        self.counters.seconds += self._planned_s
        self.counters.reading_s += self._read_s
        self.counters.planned += len(running)
        return trees

    def observe(
        self, sequences: int, rows: int, tokens: int, seconds: float, ended: bool = False
    ) -> None:
        """A step that only decoded took so long, drafting included: `rows` rows of `sequences`
        sequences gave `tokens` tokens. `ended` says whether a sequence ended with it."""
        tempo = self.tempo
        # Reading a prompt is no loss of this step: every draft of the sequence needs it.
        planned_s = self._planned_s - self._read_s
        if self._saving:
            self._observe_saving(sequences, rows, seconds, ended)
            return
        if rows == sequences:
            tempo.observe_plain(sequences, seconds - self._planned_s, ended)
            plain_s = tempo.plain(sequences)
            usual_s = self._usual_s or planned_s
            planned_s = min(planned_s, _HELD_UP * usual_s)
            self._usual_s = 0.9 * usual_s + 0.1 * planned_s
            gain_s = -planned_s
        else:
            step_s = tempo.observe_drafted(rows, seconds - self._planned_s)
            plain_s = tempo.plain(sequences)
            # What is certain is no merit of the others: they are held against a step with it.
            certain = min(self._certain, rows - sequences, tokens)
            beside_s = plain_s * (tokens - certain) / sequences + tempo.added(sequences, certain)
            gain_s = beside_s - step_s - planned_s if tempo.known else 0.0
        self.account.book(plain_s, gain_s)

    def _observe_saving(self, sequences: int, rows: int, seconds: float, ended: bool) -> None:
        """A step with nothing but what is certain, or not even that: it is no matter of the
        account."""
        if rows == sequences:
            self.tempo.observe_plain(sequences, seconds - self._planned_s, ended)
        else:
            self.tempo.observe_drafted(rows, seconds - self._planned_s)

    def rests(self, running: list[Sequence]) -> bool:
        """Whether nothing is to be drafted in the next step of these sequences, which is then not
        observed. What a grammar forces is drafted whatever the account says."""
        if not self.drafters:
            return True
        self._saving = self.config.adaptive and not self.account.open
        if self._saving:
            self.account.rest()
        return self._saving and not self._any_constrained(running)

    def _any_constrained(self, running: list[Sequence]) -> bool:
        return self._any_constraining and any(
            s.grammar is not None or s.closes is not None for s in running
        )

    def _plan(self, running: list[Sequence], room: int) -> list[Tree | None] | None:
        self._steps += 1
        self._certain = 0
        self._judge()
        room = min(room, _MOST_ROWS)
        if room < 1:
            return None
        rows = len(running)
        adaptive = self.config.adaptive
        worth = self.tempo.worth(rows) if adaptive else 0.0
        self._token_s = self.tempo.plain(rows) / rows if adaptive else math.inf
        self._row_s = worth * self._token_s if adaptive else 0.0
        held = self._saving or (adaptive and self.tempo.stale(rows))
        hopes = None if held else self._hopes(worth)
        if hopes is None and not self._any_constrained(running):
            return None
        trees = self._trees(running, hopes, worth)
        if not any(trees):
            return None
        if adaptive:
            room = min(room, sum(map(len, trees)))
            trees = choose(trees, rows, room, self.tempo.costs(rows, room))
            self._certain = sum(min(tree.certain, len(tree)) for tree in trees)
        elif sum(map(len, trees)) > room:
            each = room // rows
            trees = [tree.pruned(list(range(min(each, len(tree))))) for tree in trees]
        return [tree or None for tree in trees] if any(trees) else None

    def _judge(self) -> None:
        """Hold what the drafters that take time took for the latest step against its gains."""
        for each in self._drafters:
            if each.spent_s and 0.0 < self._token_s < math.inf:
                each.merit.book(self._steps, each.gained_s, each.spent_s)
            each.spent_s = each.gained_s = 0.0

    def learn(self, sequence: Sequence, tree: Tree, walked: list[tuple[int, int]]) -> None:
        """`walked` has the numbers that were reached, `ROOT` first, each with the token that
        follows there."""
        known = self.streams.of(sequence)
        followed = dict(walked)
        self._learn_marks(known, tree, walked)
        for number, parent in enumerate(tree.parents):
            token = followed.get(parent)
            (first, _), *others = tree.sources[number]
            accepted = token == tree.tokens[number]
            proposer = self._drafters[first]
            if proposer.joint and not others:  # which nobody else would have drafted
                proposer.gained_s += self._token_s * accepted - self._row_s
            if token is None or tree.tokens[number] < 0:
                continue
            for drafter, kind in tree.sources[number]:
                self._learn_kind(known, drafter, kind, accepted)
        counters = self.counters
        reached = sum((at, token) in tree.children for at, token in walked)
        counters.drafts += 1
        counters.tokens += tree.drafted
        counters.accepted += reached
        while len(counters.accepted_at) < max(tree.depths):
            counters.accepted_at.append(0)
        for depth in range(reached):
            counters.accepted_at[depth] += 1

    def _learn_marks(self, known: KnownSequence, tree: Tree, walked: list[tuple[int, int]]) -> None:
        """Marks of the step before whose guesses were verified now were worth as much as those were
        right; of those in this tree, the ones that the walk has passed by are worth nothing."""
        reached = sum((at, token) in tree.children for at, token in walked)
        for depth, (drafter, kind) in enumerate(known.hoped):
            self._learn_kind(known, drafter, kind, depth < reached)
            if depth >= reached:
                break
        last = walked[-1][0] if walked else ROOT
        for at, _ in walked:
            for number in tree.marks_after(at)[: None if at == last else 1]:
                if at != last:
                    for drafter, kind in tree.sources[number]:
                        self._learn_kind(known, drafter, kind, False)
        known.hoped = [tree.sources[number][0] for number in tree.marks_after(last)]

    def _learn_kind(self, known: KnownSequence, drafter: int, kind: int, accepted: bool) -> None:
        acceptance = self._drafters[drafter].acceptance
        acceptance.learn(kind, accepted)
        acceptance.tried(kind, self._steps, accepted)
        known.acceptances[drafter].learn(kind, accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self.streams.forget(sequence)

    def forget_all(self) -> None:
        """No sequence that it knows runs any longer."""
        self.streams.forget_all()

    def stats(self) -> DraftStats:
        """A copy of the counters."""
        held = self.streams.bytes + sum(each.bytes for each in self.drafters)
        accepted_at = list(self.counters.accepted_at)
        return msgspec.structs.replace(self.counters, bytes=held, accepted_at=accepted_at)

    # -- inside --------------------------------------------------------------------------------

    def _hopes(self, worth: float) -> list[list[float]] | None:
        """The shares of each drafter's kinds, of which those that are due for a trial count as
        worth one; None if no kind is worth a row."""
        if worth == self._hoped_for and not any(
            each.acceptance.changed or each.acceptance.due(self._steps)
            for each in self._drafters
            if not each.constrained
        ):
            return self._hoped
        self._hoped_for, self._hoped = worth, self._new_hopes(worth)
        return self._hoped

    def _new_hopes(self, worth: float) -> list[list[float]] | None:
        hopes = []
        any_worth = False
        for each in self._drafters:
            acceptance = each.acceptance
            acceptance.changed = False
            shares = list(acceptance.shares)  # which change as they are learned
            if each.constrained:  # which need not be worth anything
                hopes.append(shares)
                continue
            due = acceptance.due(self._steps)
            low = [kind for kind in due if shares[kind] < worth]
            if low:
                shares[low[0]] = min(1.0, 1.25 * worth + 0.05)  # enough to be chosen
            hopes.append(shares)
            any_worth = any_worth or any(share >= worth for share in shares)
        return hopes if any_worth else None

    def _trees(
        self, running: list[Sequence], hopes: list[list[float]] | None, worth: float
    ) -> list[Tree]:
        """What the drafters propose for each sequence, merged; without `hopes` only what is
        certain."""
        trees = [Tree() for _ in running]
        lefts = [0] * len(running)
        asked: list[_Asked] = []
        for place, (sequence, tree) in enumerate(zip(running, trees, strict=True)):
            left = sequence.most_tokens - len(sequence.tokens) - 1
            if left > 0 and sequence.may_draft:
                asked.append(_Asked(sequence, tree, self.streams.fed(sequence), left))
                lefts[place] = left
        for each in asked:
            self._add_certain(each)
        if hopes is not None:
            asked = [each for each in asked if each.known.fed == len(each.sequence.tokens)]
            for drafter in self._asking:
                if drafter.constrained:
                    continue
                if drafter.joint is None:
                    self._propose_apart(drafter, asked, hopes[drafter.number], worth)
                else:
                    self._propose_together(drafter, asked, hopes[drafter.number], worth)
        if self._page_tokens is not None:
            size = self._page_tokens
            ends = [size - len(sequence.tokens) % size for sequence in running]
            trees = [tree.joined(end) for tree, end in zip(trees, ends, strict=True)]
        return [tree.best(left) for tree, left in zip(trees, lefts, strict=True)]

    def _add_certain(self, asked: _Asked) -> None:
        """What a grammar forces: it would be computed in any case, only later."""
        tree, most = asked.tree, min(self.config.num_speculative_tokens, asked.left)
        for drafter, stream in zip(self._drafters, asked.known.streams, strict=True):
            draft = stream.propose(most, (1.0,), 1.0) if drafter.constrained else None
            if draft is not None:
                tree.add(draft, drafter.number, (1.0,), 1.0)
                tree.certain = len(tree)

    def _propose_apart(
        self, drafter: KnownDrafter, asked: list[_Asked], hopes: list[float], worth: float
    ) -> None:
        """Ask a drafter for each sequence by itself."""
        number, most = drafter.number, self.config.num_speculative_tokens
        for _, tree, known, left in asked:
            accepted = known.acceptances[number].shares(hopes)
            draft = known.streams[number].propose(min(most, left), accepted, worth)
            if draft is not None:
                tree.add(draft, number, accepted, worth)

    def _propose_together(
        self, drafter: KnownDrafter, asked: list[_Asked], hopes: list[float], worth: float
    ) -> None:
        """Ask for those sequences for which the others know nothing that is nearly certain."""
        joint = drafter.joint
        assert joint is not None, "the others are asked one sequence after the other"
        if self.config.adaptive and drafter.merit.rests(self._steps):
            return
        wanting = [each for each in asked if max(each.tree.chances, default=0.0) < _CERTAIN]
        if not wanting:
            return
        number, most = drafter.number, self.config.num_speculative_tokens
        wishes = [
            Wish(
                min(most, each.left),
                each.known.acceptances[number].shares(hopes),
                each.sequence.noise,
                each.sequence.view,
            )
            for each in wanting
        ]
        streams = [each.known.streams[number] for each in wanting]
        began = self._clock()
        drafts = joint.propose_all(streams, wishes, worth, self._token_s)
        self._read_s += joint.reading_s
        drafter.spent_s = self._clock() - began - joint.reading_s
        for each, wish, draft in zip(wanting, wishes, drafts, strict=True):
            if draft is not None:
                each.tree.add(draft, number, wish.accepted, worth)
