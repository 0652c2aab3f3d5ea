"""Decoding that goes on: the same sequences, one row each, step after step.

Most steps of an engine are of this kind, and then all that a step is made of stays where it is and
moves on by one cell. What a `Decoding` cannot do is left to the plain path (`ockham.engine.batch`,
`billing.book_step`), which is its oracle: the tests compare the two delta for delta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ockham.cache.state import State, View
from ockham.core.cost import ModelCost, Sublayer
from ockham.core.step import Ints, Longs, StepOutput, Tables
from ockham.core.visits import BLOCK_KEYS, Skipped
from ockham.engine.batch import build
from ockham.engine.gates import OpenGate
from ockham.engine.plan import Chunk
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.streams import Observers
from ockham.engine.visiting import choice_flops, lowest_seen, visit
from ockham.kernels.sampling import Drawn

SPARE_PAGES = 16
"""Entries that each page table has to grow into before the step is built anew."""


class Decoding:
    """Steady sequences (`Sequence.steady`) and the step of their next rows.

    One round is `reserve`, running `step`, `advance` with the sampled tokens, and the scheduler's
    `commit` of `chunks`. It is over when the sequences that run are no longer `sequences`, or
    `reserve` says so. `unbilled` counts the steps since `first_tokens` that no ledger holds yet.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        state: State,
        sublayers: Mapping[Sublayer, range],
        observers: Observers,
    ) -> None:
        """The next cell of each sequence is reserved."""
        self.sequences = list(sequences)
        self.chunks = [Chunk(sequence, 1) for sequence in sequences]
        self.first_tokens = [sequence.computed for sequence in sequences]
        self.unbilled = 0
        self._state = state
        self._views = [s.view for s in sequences if s.view is not None]
        self._changes = [view.changes for view in self._views]
        batch = build(self.chunks, state, sublayers, observers=observers)
        self.step, self.parts, self.watches = batch.step, batch.parts, batch.watches
        self._asked = _of_each(sequences, observers)
        self.draws = [p.sequence.draw(p.logits[0]) for p in self.parts if p.argmax is None]
        self._entries = max(view.pages for view in self._views) + SPARE_PAGES
        self._roomy_tables()
        groups = self.step.groups
        self._cells = _distinct(group.cells for group in groups)
        self._of_passes = [groups[number] for number in state.of_passes]
        """Those in which only the rows move on that took a pass."""
        every = [group for n, group in enumerate(groups) if n not in state.of_passes]
        places = _distinct([*(group.cells for group in every), batch.places])
        contexts = _distinct(group.context for group in every)
        slots = [group.slots for group in every]
        self._moving: list[Ints | Longs] = [self.step.positions, *places, *contexts, *slots]
        """What moves on by one. The slots of the first cell of a page are put right by
        `reserve`."""
        self._until_page = self._next_page()
        self.visited = [sequence.visited for sequence in sequences]
        """Which blocks of keys the rows of each visit; None for all."""
        self._patterned = [row for row, found in enumerate(self.visited) if found is not None]
        self._skipped = [[0] * len(groups) for _ in sequences]
        self._read_bytes = [[0] * len(groups) for _ in sequences]
        self._counted = 0  # of the unbilled steps, those that are in it
        self.spared: list[Ints] = []
        """Of each unbilled step, `StepOutput.spared`; none where nothing is decided."""
        self.deep: list[Ints] = []
        """Of each unbilled step, `StepOutput.deep`; none of a model without passes."""
        self.held = self._held()
        """Cells of each pass, of each sequence, before the unbilled steps."""
        self._until_block = self._next_block()
        borders = [s.border - s.computed for s in sequences if s.border is not None]
        self._until_border = min(borders, default=-1)
        """Steps until cells of one of them are to be dropped; below 0 for never."""
        lasting = [_steps_of(s.gate, s.computed) for s in sequences if s.gate is not None]
        self._until_gate = min((n for n in lasting if n is not None), default=-1)
        """Steps until rows of one of them skip something else; below 0 for never."""
        self.dropped = [sequence.dropped for sequence in sequences]
        """How many cells each group has dropped of each of them."""

    @classmethod
    def of(
        cls,
        sequences: list[Sequence],
        state: State,
        sublayers: Mapping[Sublayer, range],
        observers: Observers,
    ) -> Decoding | None:
        """None if the sequences are not all steady, or their next cells find no page."""
        for sequence in sequences:
            if not sequence.steady or sequence.view is None:
                return None
            if sequence.border == sequence.computed:
                return None
        for sequence in sequences:
            assert sequence.view is not None, "a running sequence has a view"
            if not state.reserve(sequence.view, sequence.computed + 1):
                return None
        return cls(sequences, state, sublayers, observers)

    def watched_by(self, observers: Observers) -> bool:
        """Whether these are the observers that were asked what they want of the step's rows."""
        return self._asked == _of_each(self.sequences, observers)

    def reserve(self) -> bool:
        """Make the next cells writable. False if this cannot go on: pages are short (those that
        were reserved stay so), a page table has outgrown its room, cells are to be dropped, or rows
        skip something else from here on."""
        if self._until_border == 0 or self._until_gate == 0:
            return False
        if self._until_block == 0:
            self._count_skipped()
            visit(self.step, self.parts, range(len(self.parts)))
            self._until_block = self._next_block()
        changed = [
            row for row, view in enumerate(self._views) if view.changes != self._changes[row]
        ]
        if self._until_page == 0:
            begins = np.zeros(len(self._views), np.bool_)
            for cells in self._cells:
                begins |= cells % self._state.page_tokens == 0
            changed += np.flatnonzero(begins).tolist()
        for row in changed:
            view = self._views[row]
            if not self._state.reserve(view, self.sequences[row].computed + 1):
                return False
            if view.pages > self._entries:
                return False
            self._copy_table(row, view)
        if changed or self._until_page == 0:  # rows that leave a pass out come there later
            self._until_page = self._next_page()
        return True

    def tokens(self, argmax: list[int], drawn: list[Drawn]) -> list[int]:
        """The token of each sequence: greedy ones have theirs in `argmax`, the others in `drawn`,
        the results of `draws`."""
        if not drawn:
            return argmax
        # Nothing is masked, so that each draw has a token.
        tokens = iter([draw.token for draw in drawn if draw.token is not None])
        return [next(tokens) if p.argmax is None else argmax[p.argmax] for p in self.parts]

    def advance(self, tokens: list[int], deep: Ints | None = None) -> None:
        """The step has run: the next one's rows are `tokens`, one cell further on; in the layers of
        a pass those that took it, `deep`."""
        step = self.step
        step.ids[:] = tokens
        for array in self._moving:
            array += 1
        if deep is not None:
            self.deep.append(deep)
            for group, took in zip(self._of_passes, deep, strict=True):
                for moved in (group.cells, group.context, group.slots):
                    moved += took
        for draw in self.draws:
            draw.position += 1
        self.unbilled += 1
        self._until_page -= 1
        self._until_border -= 1
        self._until_gate -= 1
        self._until_block -= 1

    def skipped(self, row: int, cost: ModelCost) -> list[Skipped]:
        """What the unbilled steps of a sequence did not visit, of each group. `cost` is its own."""
        self._count_skipped()
        # Each row is a step of its own, and reads anew what it visits.
        found = zip(
            self._skipped[row], self._read_bytes[row], self.step.groups, cost.groups, strict=True
        )
        return [
            Skipped(keys, keys, nbytes, choice_flops(group, row, nbytes, of))
            for keys, nbytes, group, of in found
        ]

    def note_choices(self, output: StepOutput) -> None:
        """Count what rows of the step that has run left out because they chose."""
        for number, (keys, nbytes, _) in output.left_out.items():
            for row in self._patterned:
                self._skipped[row][number] += int(keys[row])
                self._read_bytes[row][number] += int(nbytes[row])

    def billed(self) -> None:
        """The ledgers now hold every step so far."""
        self.first_tokens = [first + self.unbilled for first in self.first_tokens]
        self.unbilled = self._counted = 0
        self.spared = []
        self.deep, self.held = [], self._held()
        self._skipped = [[0] * len(of_groups) for of_groups in self._skipped]
        self._read_bytes = [[0] * len(of_groups) for of_groups in self._read_bytes]

    # -- inside --------------------------------------------------------------------------------

    def _held(self) -> list[tuple[int, ...]]:
        groups = self._state.of_passes
        return [tuple([view.groups[g].length for g in groups]) for view in self._views]

    def _roomy_tables(self) -> None:
        """Give the step the views' page tables with spare entries of -1 after each."""
        starts = np.arange(len(self._views) + 1, dtype=np.int32) * np.int32(self._entries)
        for number, group in enumerate(self.step.groups):
            pages = np.full((len(self._views), self._entries), -1, np.int32)
            for row, view in enumerate(self._views):
                held = view.groups[number]
                pages[row, : held.pages] = held.entries
            group.tables = Tables(pages.ravel(), starts)

    def _copy_table(self, row: int, view: View) -> None:
        """Put a row's page tables, and the slots that its next cells have there, into the step."""
        start, tokens = row * self._entries, self._state.page_tokens
        for group, held in zip(self.step.groups, view.groups, strict=True):
            page, offset = divmod(int(group.cells[row]), tokens)
            group.tables.pages[start : start + held.pages] = held.entries
            group.slots[row] = int(held.table[page]) * tokens + offset
        self._changes[row] = view.changes

    def _count_skipped(self) -> None:
        """Count what was not visited in the steps that no count holds yet."""
        steps, self._counted = self.unbilled - self._counted, self.unbilled
        for number, (group, window) in enumerate(
            zip(self.step.groups, self._state.windows, strict=True)
        ):
            if not steps or group.visits is None:
                continue
            for row in self._patterned:
                following = int(group.context[row])
                high = np.arange(following - steps, following, dtype=np.int32)
                low = lowest_seen(high, window)
                self._skipped[row][number] += group.visits.skipped_keys(row, low, high)

    def _next_block(self) -> int:
        """Steps until the first of the sequences visits other blocks; below 0 if none has a
        pattern."""
        if not self._patterned:
            return -1
        if not all(found.of.fixed for found in self.visited if found is not None):
            return 1
        own_keys = [group.context[self._patterned] - 1 for group in self.step.groups]
        return min(int((BLOCK_KEYS - keys % BLOCK_KEYS).min()) for keys in own_keys)

    def _next_page(self) -> int:
        """Steps until the first of the sequences comes to another page, which it may have already:
        a draft that was not accepted leaves pages behind."""
        tokens = self._state.page_tokens
        return min(int((tokens - cells % tokens).min()) for cells in self._cells)


def _steps_of(gate: OpenGate, place: int) -> int | None:
    """How many rows from a place on skip the same; None for all."""
    until = gate.of.at(place).until
    return None if until is None else until - place


def _distinct(arrays: Iterable[Ints]) -> list[Ints]:
    """Each array once: groups of layers may share them."""
    return list({id(array): array for array in arrays}.values())


def _of_each(sequences: list[Sequence], observers: Observers) -> list[object] | None:
    """The observers of each sequence; None if there are none of any."""
    return [observers.get(sequence) for sequence in sequences] if observers else None
