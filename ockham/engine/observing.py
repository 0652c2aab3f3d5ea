"""What is wanted of the rows of a step, merged into the step, and dealt out when it has run.

This is the one place that knows how an `Observer`'s wants stand in a `Step`, and in its output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.seams import Observer, OwnRows, Seen, Wants
from ockham.core.step import Step, StepOutput
from ockham.engine.part import Part
from ockham.engine.sequence import Sequence, Status
from ockham.engine.speculation import Speculation
from ockham.engine.speculation.tree import ROOT


@dataclass(slots=True)
class Watch:
    """What one observer wants of its own rows, the first of which is row `first` of the step.
    `scores` says, by layer, which of the scores in the step's output are those of `rows`."""

    observer: Observer
    own: OwnRows
    wants: Wants
    first: int
    rows: Ints
    scores: dict[int, Ints] = field(default_factory=dict)


def ask(observers: Many[Observer], own: OwnRows, first: int) -> list[Watch]:
    """Of these observers, those that want something of their own rows."""
    found = []
    for observer in observers:
        wants = observer.wants(own)
        rows = _rows(own, wants)
        if wants.scores and len(rows):
            found.append(Watch(observer, own, wants, first, rows))
    return found


def want(step: Step, watches: list[Watch]) -> None:
    """Want of a step what the observers want."""
    scored: defaultdict[int, list[Watch]] = defaultdict(list)
    for watch in watches:
        for layer in watch.wants.scores:
            scored[layer].append(watch)
    for layer, wanting in scored.items():
        rows = np.unique(np.concatenate([each.first + each.rows for each in wanting]))
        step.wants_scores[layer] = rows.astype(np.int32)
        for each in wanting:
            each.scores[layer] = np.searchsorted(rows, each.first + each.rows).astype(np.int32)


def deal(watches: list[Watch], output: StepOutput) -> None:
    """Tell the observers what the step has found."""
    for watch in watches:
        scores = {
            layer: [output.scores[layer][place] for place in places.tolist()]
            for layer, places in watch.scores.items()
        }
        watch.observer.saw(watch.own, Seen(watch.rows, scores))


def tell_likely(
    speculation: Speculation, step: Step, parts: list[Part], output: StepOutput
) -> None:
    """Tell drafters which tokens the rows of a step found likely, if they want to know."""
    if not output.candidates.size:
        return
    wanting = np.concatenate((step.wants_logits, step.wants_argmax))
    tokens, candidates = step.ids[wanting], output.candidates
    for part in parts:
        if part.samples:
            rows = part.sampling_rows(len(step.wants_logits))
            own, likely = tokens[rows], candidates[rows]
            if step.embedding_of is not None:  # what follows a mark follows no token
                read = step.embedding_of[wanting[rows]] < 0
                own, likely = own[read], np.ascontiguousarray(likely[read])
            speculation.streams.tell_likely(part.sequence, own, likely)


def tell_hidden(
    speculation: Speculation,
    layer: int,
    step: Step,
    parts: list[Part],
    reached: Mapping[Sequence, int],
    output: StepOutput,
) -> None:
    """Give drafters the hidden state, after `layer`, of the row that produced each sequence's
    newest token, and what the marks after that row found likely. The row is the part's last one,
    or the one that was `reached` of its draft."""
    hidden = output.hidden.get(layer)
    candidates = output.candidates if speculation.marks is not None else None
    if hidden is None and (candidates is None or not candidates.size):
        return
    for part in parts:
        if not part.samples or not part.head_rows or part.sequence.status is Status.FINISHED:
            continue
        rows = part.sampling_rows(len(step.wants_logits))
        at = reached.get(part.sequence, ROOT)
        stands = None if hidden is None else hidden[rows.start + 1 + at]
        guessed = None
        if part.draft is not None and candidates is not None:
            guessed = candidates[[rows.start + 1 + n for n in part.draft.marks_after(at)]]
        speculation.streams.tell_hidden(part.sequence, stands, guessed)


def _rows(own: OwnRows, wants: Wants) -> Ints:
    """The rows of which something is wanted."""
    if wants.rows is not None:
        return wants.rows
    count = len(own.tokens)
    return np.arange(count - own.choosing, count, dtype=np.int32)
