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
from dataclasses import dataclass, field
from typing import cast

import msgspec
import numpy as np

from ockham.core.seams import (
    ConstrainedDrafter,
    Drafter,
    DraftStream,
    Floats,
    GroupDrafter,
    HiddenDrafter,
    HiddenStream,
    Ints,
    KeepingDrafter,
    LearningDrafter,
    MarkedStream,
    MarkingDrafter,
    ObservingDrafter,
    ObservingStream,
    Wish,
)
from ockham.core.speculative import DraftStats, SpeculativeConfig
from ockham.engine.drafts import ROOT, Tree, choose
from ockham.engine.merit import Merit
from ockham.engine.sequence import Sequence
from ockham.engine.tempo import Tempo

_OWN_WEIGHT = 6.0
"""Trials of the engine as a whole that count as much as all of one sequence's own, at first."""
_PRIOR_WEIGHT = 3.0
_MEMORY = 200.0
"""Trials of a kind after which older ones begin to be forgotten."""
_FIRST_PROBE, _LAST_PROBE = 64, 4096
"""Steps without a trial after which a kind that is not worth it is tried again; doubled with each
trial that shows the same."""
_MOST_ROWS = 64
"""Drafted rows of a step: more never paid."""
_ALLOWED = 0.01
"""Of the time of decoding, what drafting may lose in the long run."""
_LENT, _MOST_SAVED, _MOST_OWED = 2.0, 8.0, 1.0
"""What it may lose at first, what after it has gained, and what it must make up for at most, in
plain steps."""
_CERTAIN = 0.8
"""Where a token has this chance already, no draft model is asked."""
_MOST_FED = 4096
"""Tokens of a sequence that its drafters are told before one step: a long prompt would hold up all
sequences for tens of milliseconds."""
_HELD_UP = 4.0
"""Drafting that took more than so many times what is usual was held up by something else."""


class Account:
    """What drafting has gained and lost, in seconds, so that it never loses much.

    A step with drafts is worth the plain steps that its tokens would have taken. Where the balance
    is spent, nothing is drafted, and a share of each step's time is paid in; so whatever the
    estimates say, no more than that share is lost in the long run."""

    def __init__(self) -> None:
        self.balance = 0.0
        self._plain_s = 0.0

    @property
    def open(self) -> bool:
        """Whether drafting may go on."""
        return self.balance >= 0.0

    def book(self, plain_s: float, gain_s: float) -> None:
        """A step gained so much, where a plain one takes `plain_s`."""
        if not self._plain_s:
            self.balance = _LENT * plain_s
        self._plain_s = plain_s
        self.balance += gain_s + _ALLOWED * plain_s
        self.balance = min(max(self.balance, -_MOST_OWED * plain_s), _MOST_SAVED * plain_s)

    def rest(self) -> None:
        """A step without any drafting."""
        self.balance += _ALLOWED * self._plain_s


class Acceptance:
    """How often the tokens of each kind of one drafter are accepted, when their parents are."""

    def __init__(self, prior: tuple[float, ...]) -> None:
        self.changed = True
        """Since the controller looked last."""
        self._soonest = _FIRST_PROBE
        self._hits = [_PRIOR_WEIGHT * share for share in prior]
        self._trials = [_PRIOR_WEIGHT] * len(prior)
        self._next_probe = [_FIRST_PROBE] * len(prior)
        self._interval = [_FIRST_PROBE] * len(prior)
        self.shares = list(prior)

    def learn(self, kind: int, accepted: bool) -> None:
        if self._trials[kind] >= _MEMORY:
            self._hits[kind] *= 0.5
            self._trials[kind] *= 0.5
        self._hits[kind] += accepted
        self._trials[kind] += 1.0
        self.shares[kind] = self._hits[kind] / self._trials[kind]
        self.changed = True

    def tried(self, kind: int, step: int, accepted: bool) -> None:
        """When to try it again, should it not be worth it."""
        grown = _FIRST_PROBE if accepted else min(2 * self._interval[kind], _LAST_PROBE)
        self._interval[kind] = grown
        self._next_probe[kind] = step + grown
        self._soonest = min(self._next_probe, default=step)

    def due(self, step: int) -> list[int]:
        """Kinds that nothing is known of lately."""
        if step < self._soonest:
            return []
        return [kind for kind, at in enumerate(self._next_probe) if step >= at]


@dataclass(slots=True)
class _Known:
    """What is known of one sequence."""

    streams: list[DraftStream]
    fed: int = 0
    hits: list[list[float]] = field(default_factory=list)
    trials: list[list[float]] = field(default_factory=list)
    tried: bool = False
    hoped: list[tuple[int, int]] = field(default_factory=list)
    """The marks after the latest token, by drafter and kind: whether they were worth their rows is
    seen from what is drafted by them."""
    shares: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict)
    """By drafter, its shares and what they were made of, as long as nothing new is known."""


class Speculation:
    """The controller of an engine's drafters."""

    def __init__(self, config: SpeculativeConfig, drafters: list[Drafter]) -> None:
        self.config = config
        self.drafters = drafters
        self.names = [drafter.name for drafter in drafters]
        self._joint = [isinstance(drafter, GroupDrafter) for drafter in drafters]
        self._hidden = [isinstance(drafter, HiddenDrafter) for drafter in drafters]
        self._marking = [isinstance(drafter, MarkingDrafter) for drafter in drafters]
        marks = [each.marks for each in drafters if isinstance(each, MarkingDrafter)]
        self.marks: Floats | None = marks[0] if marks else None
        """The inputs of the marks that drafts may have."""
        self.acceptance = [Acceptance(drafter.kinds) for drafter in drafters]
        self._asking = sorted(range(len(drafters)), key=lambda number: self._joint[number])
        """The drafters in the order in which they are asked: those that take time come last."""
        self._merits = [Merit() for _ in drafters]
        self._spent = [0.0 for _ in drafters]
        self._gained = [0.0 for _ in drafters]
        """Of those that take time, in the latest step: what they took, and what their tokens
        gained."""
        self._token_s = self._row_s = 0.0
        """What a token is worth and a row costs, in seconds, as of the latest plan."""
        self.tempo = Tempo()
        self.account = Account()
        self.counters = DraftStats()
        self._saving = False
        """Whether the account is spent, so that only what is certain is drafted."""
        self._certain = 0
        """Rows of the latest step's drafts that a grammar forces."""
        self._planned_s = self._usual_s = self._read_s = 0.0
        """What drafting took for the latest step, and usually takes."""
        self._hoped: list[list[float]] | None = None
        self._hoped_for = -1.0
        self._constrained = [isinstance(drafter, ConstrainedDrafter) for drafter in drafters]
        self._wanted = [
            drafter.candidates if isinstance(drafter, ObservingDrafter) else 0
            for drafter in drafters
        ]
        counts = [each.count for each in drafters if isinstance(each, MarkingDrafter)]
        self._most_wanted = max([*self._wanted, *counts], default=0)
        self._learning = [each for each in drafters if isinstance(each, LearningDrafter)]
        self._steps = 0
        self._known: dict[Sequence, _Known] = {}

    def __bool__(self) -> bool:
        return bool(self.drafters)

    @property
    def learns(self) -> bool:
        """Whether a drafter learns from one sequence for another."""
        return bool(self._learning)

    @property
    def candidates(self) -> int:
        """How many of the likeliest tokens of each row drafters want to know now."""
        if self.config.adaptive and not self.account.open:
            return 0
        return self._most_wanted

    @property
    def wants_hidden_states(self) -> bool:
        """Whether drafters want to know how rows stand after the last layer."""
        return any(self._hidden) and (not self.config.adaptive or self.account.open)

    def tell_where(self, sequence: Sequence, hidden: Floats | None, guessed: Ints | None) -> None:
        """The row after which a sequence's latest token came stands so after the last layer,
        (hidden_size,), and the marks after it found these likely, (marks, count)."""
        known = self._known.get(sequence)
        if known is None or known.fed + _MOST_FED < len(sequence.tokens):
            return
        for number, stream in enumerate(known.streams):
            if self._hidden[number] and hidden is not None:
                self._feed(known, sequence, but=1)
                cast(HiddenStream, stream).stand(hidden)
            if self._marking[number] and guessed is not None and len(guessed):
                self._feed(known, sequence, but=1)
                cast(MarkedStream, stream).guess(guessed)

    def tell(self, sequence: Sequence, tokens: Ints, candidates: Ints) -> None:
        """A step had rows of a sequence with these inputs (n,), and these were likely after them:
        (n, `candidates`)."""
        known = self._known.get(sequence)
        if known is None:
            return
        for stream, wanted in zip(known.streams, self._wanted, strict=True):
            if wanted:
                observing = cast(ObservingStream, stream)
                observing.observe(tokens, np.ascontiguousarray(candidates[:, :wanted]))

    def save(self) -> None:
        """The engine is no more: drafters save what they keep."""
        for drafter in self._learning:
            drafter.save()

    def plan(self, running: list[Sequence], room: int) -> list[Tree | None] | None:
        """A tree for each of these sequences, all of which decode; None if nothing is worth a row.
        `room` is how many rows a step may have beside theirs."""
        began, self._read_s = time.perf_counter(), 0.0
        trees = self._plan(running, room)
        self._planned_s = time.perf_counter() - began
        self.counters.seconds += self._planned_s
        self.counters.reading_s += self._read_s
        self.counters.planned += len(running)
        return trees

    def observe(self, sequences: int, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded took so long, drafting included: `rows` rows of `sequences`
        sequences gave `tokens` tokens."""
        tempo = self.tempo
        # Reading a prompt is no loss of this step: every draft of the sequence needs it.
        planned_s = self._planned_s - self._read_s
        if self._saving:
            self._observe_saving(sequences, rows, seconds)
            return
        if rows == sequences:
            tempo.observe_plain(sequences, seconds - self._planned_s)
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

    def _observe_saving(self, sequences: int, rows: int, seconds: float) -> None:
        """A step with nothing but what is certain, or not even that: it is no matter of the
        account."""
        if rows == sequences:
            self.tempo.observe_plain(sequences, seconds - self._planned_s)
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
        return any(self._constrained) and any(s.grammar is not None for s in running)

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
        for number, merit in enumerate(self._merits):
            if self._spent[number] and 0.0 < self._token_s < math.inf:
                merit.book(self._steps, self._gained[number], self._spent[number])
            self._spent[number] = self._gained[number] = 0.0

    def learn(self, sequence: Sequence, tree: Tree, walked: list[tuple[int, int]]) -> None:
        """`walked` has the numbers that were reached, `ROOT` first, each with the token that
        follows there."""
        known = self._known[sequence]
        known.shares.clear()
        followed = dict(walked)
        self._learn_marks(known, tree, walked)
        for number, parent in enumerate(tree.parents):
            token = followed.get(parent)
            (first, _), *others = tree.sources[number]
            accepted = token == tree.tokens[number]
            if self._joint[first] and not others:  # which nobody else would have drafted
                self._gained[first] += self._token_s * accepted - self._row_s
            if token is None or tree.tokens[number] < 0:
                continue
            for drafter, kind in tree.sources[number]:
                self._learn_kind(known, drafter, kind, accepted)
        known.tried = True
        counters = self.counters
        reached = sum((at, token) in tree.children for at, token in walked)
        counters.drafts += 1
        counters.tokens += tree.drafted
        counters.accepted += reached
        while len(counters.accepted_at) < max(tree.depths):
            counters.accepted_at.append(0)
        for depth in range(reached):
            counters.accepted_at[depth] += 1

    def _learn_marks(self, known: _Known, tree: Tree, walked: list[tuple[int, int]]) -> None:
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

    def _learn_kind(self, known: _Known, drafter: int, kind: int, accepted: bool) -> None:
        self.acceptance[drafter].learn(kind, accepted)
        self.acceptance[drafter].tried(kind, self._steps, accepted)
        known.hits[drafter][kind] += accepted
        known.trials[drafter][kind] += 1.0

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        known = self._known.pop(sequence, None)
        if known is not None:
            if self._learning:
                self._feed(known, sequence)  # others may go on as it ended
            for stream in known.streams:
                stream.close()

    def forget_all(self) -> None:
        """No sequence that it knows runs any longer."""
        for sequence in list(self._known):
            self.forget(sequence)

    def stats(self) -> DraftStats:
        """A copy of the counters."""
        held = sum(stream.bytes for known in self._known.values() for stream in known.streams)
        held += sum(each.bytes for each in self.drafters if isinstance(each, KeepingDrafter))
        accepted_at = list(self.counters.accepted_at)
        return msgspec.structs.replace(self.counters, bytes=held, accepted_at=accepted_at)

    # -- inside --------------------------------------------------------------------------------

    def _hopes(self, worth: float) -> list[list[float]] | None:
        """The shares of each drafter's kinds, of which those that are due for a trial count as
        worth one; None if no kind is worth a row."""
        if worth == self._hoped_for and not any(
            acceptance.changed or acceptance.due(self._steps)
            for acceptance, certain in zip(self.acceptance, self._constrained, strict=True)
            if not certain
        ):
            return self._hoped
        self._hoped_for, self._hoped = worth, self._new_hopes(worth)
        return self._hoped

    def _new_hopes(self, worth: float) -> list[list[float]] | None:
        hopes = []
        any_worth = False
        for acceptance, certain in zip(self.acceptance, self._constrained, strict=True):
            acceptance.changed = False
            shares = list(acceptance.shares)  # which change as they are learned
            if certain:  # which need not be worth anything
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
        asked: list[tuple[Sequence, Tree, _Known, int]] = []
        for sequence, tree in zip(running, trees, strict=True):
            left = sequence.most_tokens - len(sequence.tokens) - 1
            if left > 0 and sequence.may_draft:
                asked.append((sequence, tree, self._fed(sequence), left))
        for _, tree, known, left in asked:
            self._add_certain(tree, known, left)
        lefts = {id(tree): left for _, tree, _, left in asked}
        asked = [each for each in asked if each[2].fed == len(each[0].tokens)]
        for number in self._asking if hopes is not None else ():
            assert hopes is not None, "otherwise nobody is asked"
            drafter = self.drafters[number]
            if self._constrained[number]:
                continue
            if self._joint[number]:
                joint = cast(GroupDrafter, drafter)
                self._propose_together(number, joint, asked, hopes[number], worth)
                continue
            for _, tree, known, left in asked:
                most = min(self.config.num_speculative_tokens, left)
                accepted = self._shares(known, number, hopes[number])
                draft = known.streams[number].propose(most, accepted, worth)
                if draft is not None:
                    tree.add(draft, number, accepted, worth)
        return [tree.best(lefts.get(id(tree), 0)) for tree in trees]

    def _add_certain(self, tree: Tree, known: _Known, left: int) -> None:
        """What a grammar forces: it would be computed in any case, only later."""
        most = min(self.config.num_speculative_tokens, left)
        for number, stream in enumerate(known.streams):
            draft = stream.propose(most, (1.0,), 1.0) if self._constrained[number] else None
            if draft is not None:
                tree.add(draft, number, (1.0,), 1.0)
                tree.certain = len(tree)

    def _propose_together(
        self,
        number: int,
        drafter: GroupDrafter,
        asked: list[tuple[Sequence, Tree, _Known, int]],
        hopes: list[float],
        worth: float,
    ) -> None:
        """Ask for those sequences for which the others know nothing that is nearly certain."""
        if self.config.adaptive and self._merits[number].rests(self._steps):
            return
        wanting = [each for each in asked if max(each[1].chances, default=0.0) < _CERTAIN]
        if not wanting:
            return
        most = self.config.num_speculative_tokens
        wishes = [
            Wish(min(most, left), self._shares(known, number, hopes), sequence.noise, sequence.view)
            for sequence, _, known, left in wanting
        ]
        streams = [known.streams[number] for _, _, known, _ in wanting]
        began = time.perf_counter()
        drafts = drafter.propose_all(streams, wishes, worth, self._token_s)
        self._read_s += drafter.reading_s
        self._spent[number] = time.perf_counter() - began - drafter.reading_s
        for (_, tree, _, _), wish, draft in zip(wanting, wishes, drafts, strict=True):
            if draft is not None:
                tree.add(draft, number, wish.accepted, worth)

    def _fed(self, sequence: Sequence) -> _Known:
        """What is known of a sequence: all of its tokens, but for the end of a long prompt, which
        the drafters are told in several steps."""
        known = self._known.get(sequence)
        if known is None:
            known = self._known[sequence] = self._open(sequence)
        self._feed(known, sequence, but=max(0, len(sequence.tokens) - known.fed - _MOST_FED))
        return known

    def _feed(self, known: _Known, sequence: Sequence, but: int = 0) -> None:
        """Tell the drafters the tokens that are new to them, all `but` so many."""
        upto = len(sequence.tokens) - but
        if known.fed < upto:
            new = np.array(sequence.tokens[known.fed : upto], np.int32)
            known.fed = upto
            for stream in known.streams:
                stream.extend(new)

    def _open(self, sequence: Sequence) -> _Known:
        kinds = [len(drafter.kinds) for drafter in self.drafters]
        return _Known(
            [self._open_stream(drafter, sequence) for drafter in self.drafters],
            hits=[[0.0] * count for count in kinds],
            trials=[[0.0] * count for count in kinds],
        )

    @staticmethod
    def _open_stream(drafter: Drafter, sequence: Sequence) -> DraftStream:
        if sequence.grammar is not None and isinstance(drafter, ConstrainedDrafter):
            return drafter.open_constrained(sequence.salt, sequence.grammar)
        return drafter.open(sequence.salt)

    def _shares(self, known: _Known, drafter: int, hopes: list[float]) -> list[float]:
        """The shares of all sequences, drawn towards what this one has shown."""
        if not known.tried:
            return hopes
        before = known.shares.get(drafter)
        if before is not None and before[0] is hopes:
            return before[1]
        hits, trials = known.hits[drafter], known.trials[drafter]
        shares = [
            (h + _OWN_WEIGHT * hope) / (t + _OWN_WEIGHT) if t else hope
            for h, t, hope in zip(hits, trials, hopes, strict=True)
        ]
        known.shares[drafter] = hopes, shares
        return shares
