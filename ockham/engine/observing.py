"""What is wanted of the rows of a step, merged into the step, and dealt out when it has run.

This is the one place that knows how an `Observer`'s wants stand in a `Step`, and in its output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints
from ockham.core.seams import Observer, OwnRows, Seen, Wants
from ockham.core.step import RowSets, Step, StepOutput
from ockham.engine.part import Part
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.tree import ROOT

NO_CANDIDATES: Ints = np.empty((0, 0), np.int32)


@dataclass(slots=True)
class Watch:
    """What one observer wants of its own rows, the first of which is row `first` of the step.
    `rows` are those of which hidden states, scores and queries are wanted; `hidden`, `scores`,
    `score_sums` and `queries` say, by layer, where those stand in the step's output."""

    observer: Observer
    own: OwnRows
    wants: Wants
    first: int
    part: Part
    rows: Ints
    hidden: dict[int, Ints] = field(default_factory=dict)
    scores: dict[int, Ints] = field(default_factory=dict)
    score_sums: dict[int, Ints] = field(default_factory=dict)
    queries: dict[int, Ints] = field(default_factory=dict)
    totals: dict[int, int] = field(default_factory=dict)
    """Of each layer, which of the step's sets is the first of this observer's."""


class Asked:
    """The observers of one sequence that want something of its own rows, and what. The first of the
    rows is row `first` of the step."""

    def __init__(self, observers: Iterable[Observer], own: OwnRows, first: int) -> None:
        self._own, self._first = own, first
        self._wants = [
            (observer, wants)
            for observer in observers
            if _wants_of(own, wants := observer.wants(own))
        ]
        self.logits = any(wants.logits for _, wants in self._wants)
        """Whether the logits of the rows that choose are wanted."""

    def watches(self, part: Part) -> list[Watch]:
        """The same, with the part that the rows are of."""
        own, count = self._own, len(self._own.tokens)
        choosing = np.arange(count - own.choosing, count, dtype=np.int32)
        every = np.arange(count, dtype=np.int32)
        return [
            Watch(
                observer,
                own,
                wants,
                self._first,
                part,
                every if wants.settled else choosing if wants.rows is None else wants.rows,
            )
            for observer, wants in self._wants
        ]


def _wants_of(own: OwnRows, wants: Wants) -> bool:
    """Whether anything is wanted of these rows."""
    if wants.settled:
        return bool(wants.hidden)
    rows = own.choosing if wants.rows is None else len(wants.rows)
    if (wants.hidden or wants.scores or wants.score_sums or wants.queries) and rows:
        return True
    if wants.totals and any(map(len, wants.totalled)):
        return True
    return own.choosing > 0 and (wants.candidates > 0 or wants.logits)


def want(step: Step, watches: list[Watch]) -> None:
    """Want of a step what the observers want."""
    step.candidates = max([each.wants.candidates for each in watches], default=0)
    _want_rows(step.wants_hidden, [(w, w.wants.hidden, w.hidden) for w in watches])
    _want_rows(step.wants_scores, [(w, w.wants.scores, w.scores) for w in watches])
    _want_rows(step.wants_score_sums, [(w, w.wants.score_sums, w.score_sums) for w in watches])
    _want_rows(step.wants_queries, [(w, w.wants.queries, w.queries) for w in watches])
    _want_totals(step, [watch for watch in watches if watch.wants.totals])


def _want_rows(
    wanted: dict[int, Ints], asked: Iterable[tuple[Watch, Many[int], dict[int, Ints]]]
) -> None:
    """Want, of the layers that each observer names, the rows that it wants. Where they stand among
    the layer's wanted rows is put into its places."""
    by_layer: defaultdict[int, list[tuple[Watch, dict[int, Ints]]]] = defaultdict(list)
    for watch, layers, places in asked:
        for layer in layers:
            by_layer[layer].append((watch, places))
    for layer, wanting in by_layer.items():
        wanted[layer] = rows = _rows_of([watch for watch, _ in wanting])
        for watch, places in wanting:
            places[layer] = np.searchsorted(rows, watch.first + watch.rows).astype(np.int32)


def _want_totals(step: Step, watches: list[Watch]) -> None:
    """Want the sums of probabilities that observers want, over each set of rows."""
    sets: defaultdict[int, list[Ints]] = defaultdict(list)
    for watch in watches:
        wanted = [watch.first + rows for rows in watch.wants.totalled if len(rows)]
        for layer in watch.wants.totals:
            watch.totals[layer] = len(sets[layer])
            sets[layer] += wanted
    for layer, of_layer in sets.items():
        starts = np.cumsum([0, *map(len, of_layer)], dtype=np.int32)
        step.wants_score_totals[layer] = RowSets(
            np.concatenate(of_layer).astype(np.int32, copy=False), starts
        )


def deal(watches: list[Watch], step: Step, output: StepOutput) -> None:
    """Tell the observers what the step has found."""
    for each in watches:
        if not (each.wants.newest or each.wants.settled):
            each.observer.saw(each.own, _seen(each, step, output))


def deal_newest(
    watches: list[Watch], reached: Mapping[Sequence, int], step: Step, output: StepOutput
) -> None:
    """Tell the observers that waited for it what the step has found of the row by which each
    sequence's newest token was chosen: its part's last row, or the one `reached` of its draft; or
    of all rows up to that one."""
    for each in watches:
        sequence, draft = each.part.sequence, each.part.draft
        if each.wants.settled and sequence.finish_reason is None:
            each.observer.saw(each.own, _seen_settled(each, output, reached.get(sequence, ROOT)))
        if each.wants.newest and sequence.finish_reason is None:
            at = reached.get(sequence, ROOT)
            marks = [] if draft is None else draft.marks_after(at)
            wants = each.wants
            of_rows = wants.hidden or wants.scores or wants.score_sums or wants.logits
            if of_rows or (wants.candidates and marks):
                each.observer.saw(each.own, _seen_newest(each, step, output, at, marks))


def _rows_of(wanting: list[Watch]) -> Ints:
    """The step's rows that some observer wants, ascending."""
    rows = np.concatenate([each.first + each.rows for each in wanting])
    return np.unique(rows).astype(np.int32)


def _seen(watch: Watch, step: Step, output: StepOutput) -> Seen:
    """What an observer wanted, of all rows that it wanted it of."""
    return Seen(
        False,
        watch.rows,
        _candidates(watch, step, output),
        _logits(watch, output),
        {layer: output.hidden[layer][places] for layer, places in watch.hidden.items()},
        _scores(watch.scores, output.scores),
        _scores(watch.score_sums, output.score_sums),
        _totals(watch, output),
        {layer: output.queries[layer][places] for layer, places in watch.queries.items()},
    )


def _totals(watch: Watch, output: StepOutput) -> dict[int, list[Doubles | None]]:
    """Layer -> what was found of each of the observer's sets of rows."""
    found: dict[int, list[Doubles | None]] = {}
    for layer, first in watch.totals.items():
        of_layer = iter(output.score_totals[layer][first:])
        found[layer] = [next(of_layer) if len(rows) else None for rows in watch.wants.totalled]
    return found


def _seen_newest(watch: Watch, step: Step, output: StepOutput, at: int, marks: Many[int]) -> Seen:
    """What an observer wanted, of the row that was reached, and of the marks behind it."""
    own = 1 + at
    candidates = _candidates(watch, step, output)
    return Seen(
        True,
        watch.rows[own : own + 1],
        candidates[[1 + mark for mark in marks]] if watch.wants.candidates else candidates,
        _logits(watch, output)[own : own + 1],
        {layer: output.hidden[layer][[places[own]]] for layer, places in watch.hidden.items()},
        _scores(watch.scores, output.scores, own),
        _scores(watch.score_sums, output.score_sums, own),
    )


def _seen_settled(watch: Watch, output: StepOutput, at: int) -> Seen:
    """The hidden states of a part's rows, without those of its draft that were not accepted."""
    draft = watch.part.draft
    kept = watch.rows
    if draft is not None:
        before = len(kept) - len(draft)
        kept = np.array([*range(before), *(before + n for n in draft.path(at))], np.int32)
    return Seen(
        False,
        kept,
        NO_CANDIDATES,
        output.logits[:0],
        {layer: output.hidden[layer][places[kept]] for layer, places in watch.hidden.items()},
        {},
    )


def _scores(
    places: dict[int, Ints], found: dict[int, list[Floats]], own: int | None = None
) -> dict[int, list[Floats]]:
    """Layer -> the scores of an observer's rows, or of its row `own` alone."""
    chosen = slice(None) if own is None else slice(own, own + 1)
    return {
        layer: [found[layer][place] for place in of_layer[chosen].tolist()]
        for layer, of_layer in places.items()
    }


def _candidates(watch: Watch, step: Step, output: StepOutput) -> Ints:
    """The likeliest tokens after each row of a part that chooses, as many as are wanted."""
    count = watch.wants.candidates
    if not count or not watch.own.choosing:
        return NO_CANDIDATES
    heads = watch.part.sampling_rows(len(step.wants_logits))
    return np.ascontiguousarray(output.candidates[heads, :count])


def _logits(watch: Watch, output: StepOutput) -> Floats:
    """The logits of each row of a part that chooses, if they are wanted: the part's last ones."""
    if not watch.wants.logits:
        return output.logits[:0]
    stop = watch.part.logits.stop
    return output.logits[stop - watch.own.choosing : stop]
