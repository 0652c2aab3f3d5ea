"""From the chunks of a plan to a step, and from a step's logits back to the chunks."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from ockham.cache.state import State
from ockham.core.cost import ModelCost, Skips, Sublayer
from ockham.core.rows import Branch, build_step, chains
from ockham.core.seams import OwnRows
from ockham.core.step import Floats, Ints, Step, StepOutput
from ockham.engine.gates import OpenGate, active_rows, deeper_of, runs_of_rows, sparing_of
from ockham.engine.observing import Asked, Watch, want
from ockham.engine.part import Part
from ockham.engine.passes import Deep
from ockham.engine.plan import Chunk
from ockham.engine.speculation.streams import Observers
from ockham.engine.speculation.tree import Tree
from ockham.engine.visiting import left_out, skipped, visit

NOBODY: Observers = {}


@dataclass(slots=True)
class Walk:
    """The way through a part's draft: the places that were reached, `ROOT` first, each with the
    token that follows there. `accepted` are the drafted tokens among those."""

    part: Part
    tree: Tree
    followed: list[tuple[int, int]] = field(default_factory=list)
    accepted: set[int] = field(default_factory=set)
    lenient: set[int] = field(default_factory=set)
    """Those of them that were not drawn, and stayed because the model finds them likely enough."""

    def follow(self, at: int, token: int) -> int | None:
        """`token` follows at a place: its number in the draft, if it was drafted."""
        self.followed.append((at, token))
        number = self.tree.children.get((at, token))
        if number is not None:
            self.accepted.add(number)
        return number


@dataclass(slots=True)
class Batch:
    step: Step
    parts: list[Part]
    watches: list[Watch]
    places: Ints
    """(R,) which tokens of their sequences the rows are."""


def build(
    chunks: list[Chunk],
    state: State,
    sublayers: Mapping[Sublayer, range],
    marks: Floats | None = None,
    observers: Observers = NOBODY,
    *,
    hidden_layer: int | None = None,
    second_texts: int = 0,
    recall_every: int = 0,
) -> Batch:
    """The step that computes `chunks`, whose cells are reserved. `sublayers` are the operations of
    the program that gates may leave out. `marks` are the inputs of the
    marks that drafts may have (`seams.Drafter`). `observers` want to know of its rows, beside the
    sequences' own observers. `hidden_layer` is the number under which a step gives the last hidden
    states. The positions of the second texts of pairs begin `second_texts` later. Of sequences with
    a pattern, the recall of every `recall_every`-th token is wanted."""
    sequences = [chunk.sequence for chunk in chunks]
    views = [s.view for s in sequences if s.view is not None]
    counts = np.array([chunk.rows for chunk in chunks], np.int32)
    starts = np.array([s.computed for s in sequences], np.int32)
    rows = chains(starts, counts)
    owner, places, first_rows = rows.owner, rows.places, rows.first_rows.tolist()
    ids = np.empty(len(places), np.int32)
    parts: list[Part] = []
    watches: list[Watch] = []
    branches: list[Branch] = []
    wanted: list[int] = []
    argmax: list[int] = []
    hidden: list[int] = []
    for chunk, sequence, row in zip(chunks, sequences, first_rows, strict=True):
        runs = [(sequence.computed, chunk.rows)]
        if sequence.splicing is None:
            ids[row : row + chunk.kept] = sequence.tokens[
                sequence.computed : sequence.computed + chunk.kept
            ]
        else:
            own = sequence.next_cells(chunk.rows)
            places[row : row + chunk.rows] = own
            ids[row : row + chunk.rows] = sequence.token_ids(int(own[-1]) + 1)[own]
            runs = runs_of(own)
        if chunk.draft is not None:
            ids[row + chunk.kept : row + chunk.rows] = chunk.draft.tokens
            root = row + chunk.kept - 1
            branches += _branches(chunk, root, int(places[root]))
            greedy, asked = sequence.greedy, None
            if sequence.observers or observers:
                asked = _ask(chunk, observers, ids, places, row, 1 + len(chunk.draft))
                greedy = greedy and not asked.logits
            parts.append(_drafted(chunk, row, argmax if greedy else wanted, greedy))
            if asked is not None:
                watches += asked.watches(parts[-1])
            continue
        wants = sequence.wanted_logits(chunk.rows)
        samples = chunk.rows == sequence.remaining and not sequence.scores_only
        greedy = samples and sequence.greedy
        known = samples and not greedy and sequence.forced is not None
        asked = None
        if sequence.observers or observers:
            asked = _ask(chunk, observers, ids, places, row, int(samples and not known))
            greedy = greedy and not asked.logits
        if greedy or known:
            wants = wants[:-1]
        parts.append(
            Part(
                sequence,
                sequence.computed,
                chunk.rows,
                range(len(wanted), len(wanted) + len(wants)),
                samples,
                len(argmax) if greedy else None,
                runs,
            )
        )
        if asked is not None:
            watches += asked.watches(parts[-1])
        if sequence.pool is not None:
            pooled = sequence.wanted_hidden(chunk.rows)
            parts[-1].hidden = range(len(hidden), len(hidden) + len(pooled))
            hidden.extend(range(row + pooled.start, row + pooled.stop))
        wanted.extend(range(row + wants.start, row + wants.stop))
        if greedy:
            argmax.append(row + chunk.rows - 1)

    step = build_step(
        ids,
        places,
        owner,
        state.tables(views),
        state.page_tokens,
        dropped=state.dropped(views),
        branches=branches,
        seeds=np.repeat(np.array([s.seed for s in sequences], np.uint64), counts),
        wants_logits=np.array(wanted, np.int32),
        wants_argmax=np.array(argmax, np.int32),
    )
    logical = step.positions.copy() if second_texts else step.positions
    if second_texts:
        _shift_second_texts(step, parts, first_rows, second_texts)
    if hidden and hidden_layer is not None:
        step.wants_hidden[hidden_layer] = np.array(hidden, np.int32)
    if any(s.adapter is not None for s in sequences):
        step.adapters = tuple(None if s.adapter is None else s.adapter.packed for s in sequences)
    if watches:
        want(step, watches)
    if any(s.gate is not None for s in sequences):
        _gate(step, parts, first_rows, logical, sublayers)
    if marks is not None:
        _mark(step, marks)
    visit(step, parts, first_rows, recall_every)
    for part, row in zip(parts, first_rows, strict=True):
        if part.sequence.inputs:
            _put_inputs(step, part, row)
        if part.sequence.visited is not None:
            part.skipped = skipped(step, slice(row, row + part.rows), state.windows)
    return Batch(step, parts, watches, places)


def note_choices(batch: Batch, output: StepOutput, cost: ModelCost) -> None:
    """Tell the parts of a step that has run what their rows left out because they chose."""
    row = 0
    for part in batch.parts:
        if part.skipped:
            rows = slice(row, row + part.rows)
            found = left_out(batch.step, rows, output.left_out, cost)
            part.skipped = [one + other for one, other in zip(part.skipped, found, strict=True)]
        row += part.rows


def _gate(
    step: Step,
    parts: list[Part],
    first_rows: list[int],
    places: Ints,
    sublayers: Mapping[Sublayer, range],
) -> None:
    """Put into a step what the gates of its sequences say that their rows skip. `places` are those
    that the rows of drafts would have if they were accepted."""
    runs = []
    gates: list[tuple[OpenGate | None, Ints]] = []
    for part, row in zip(parts, first_rows, strict=True):
        gate = part.sequence.gate
        own = runs_of_rows(gate, places[row : row + part.rows])
        gates.append((gate, places[row : row + part.rows]))
        if gate is not None:
            part.gated = own
        runs += own
    step.active = active_rows([skips for skips, _ in runs], [rows for _, rows in runs], sublayers)
    step.sparing = sparing_of(gates, sublayers)
    step.deeper = deeper_of(gates)


def note_spared(batch: Batch, output: StepOutput) -> None:
    """Tell the parts of a step that has run which feed-forwards their rows decided to skip."""
    row = 0
    for part in batch.parts:
        part.spared = output.spared[:, row : row + part.rows]
        row += part.rows


def note_deep(batch: Batch, output: StepOutput, skips: Many[Skips], state: State) -> None:
    """Tell the parts of a step that has run which passes their rows took."""
    row = 0
    for part in batch.parts:
        view = part.sequence.view
        assert view is not None, "a running sequence has a view"
        held = tuple([view.groups[group].length for group in state.of_passes])
        part.deep = Deep(tuple(skips), output.deep[:, row : row + part.rows], held)
        part.gated = part.deep.runs
        row += part.rows


def _shift_second_texts(step: Step, parts: list[Part], first_rows: list[int], by: int) -> None:
    """Tell a model with types of tokens which rows are of the second text of a pair."""
    for part, row in zip(parts, first_rows, strict=True):
        second = part.sequence.request.second_text_at
        if second is not None:
            step.positions[row + max(0, second - part.start) : row + part.rows] += by


def _put_inputs(step: Step, part: Part, row: int) -> None:
    """Give rows whose tokens only hold the place their inputs."""
    before, own = part.sequence.prompt_tokens, part.sequence.inputs
    first = max(part.start, before)
    wanted = own[first - before : part.end - before]
    if not wanted:
        return
    if step.embedding_of is None or step.embeddings is None:
        step.embedding_of = np.full(step.rows, -1, np.int32)
        step.embeddings = np.empty((0, len(wanted[0])), np.float32)
    at = row + first - part.start
    step.embedding_of[at : at + len(wanted)] = len(step.embeddings) + np.arange(len(wanted))
    step.embeddings = np.concatenate((step.embeddings, wanted))


def _mark(step: Step, marks: Floats) -> None:
    """Give rows whose tokens are marks their inputs."""
    marked = step.ids < 0
    if marked.any():
        step.embeddings = marks
        step.embedding_of = np.where(marked, -1 - step.ids, -1).astype(np.int32)
        step.ids = np.where(marked, 0, step.ids)  # observers see what was there


def runs_of(cells: Ints) -> list[tuple[int, int]]:
    """Ascending cells as runs of consecutive ones, each as (first cell, cells)."""
    if not len(cells):
        return []
    starts = np.flatnonzero(np.diff(cells, prepend=cells[0] - 2) != 1)
    lengths = np.diff(starts, append=len(cells))
    return list(zip(cells[starts].tolist(), lengths.tolist(), strict=True))


def _ask(
    chunk: Chunk, observers: Observers, ids: Ints, places: Ints, row: int, choosing: int
) -> Asked:
    """What the observers of a chunk's sequence want of its rows, the first of which is the step's
    row `row`."""
    sequence, rows = chunk.sequence, slice(row, row + chunk.rows)
    own = OwnRows(ids[rows], places[rows], choosing)
    return Asked([*sequence.observers, *observers.get(sequence, ())], own, row)


def _drafted(chunk: Chunk, row: int, wants: list[int], greedy: bool) -> Part:
    """The part of a chunk with a draft, all of whose rows want the same: to be among `wants`, the
    rows whose argmax is wanted if it is `greedy`, or else those whose logits are."""
    sequence, first = chunk.sequence, len(wants)
    wants.extend(range(row, row + chunk.rows))
    return Part(
        sequence,
        sequence.computed,
        chunk.rows,
        range(0) if greedy else range(first, first + chunk.rows),
        True,
        first if greedy else None,
        [(sequence.computed, chunk.rows)],
        draft=chunk.draft,
    )


def _branches(chunk: Chunk, root: int, place: int) -> list[Branch]:
    """The rows of a chunk's draft that go on from no row just before them. `root` is the chunk's
    last row before the draft, and `place` where that stands."""
    draft, committed = chunk.draft, place + 1
    if draft is None:
        return []
    return [
        Branch(root + 1 + number, committed, [committed + n for n in draft.path(number)[:-1]])
        for number in range(draft.leading, len(draft))
    ]
