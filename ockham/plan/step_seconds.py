"""The predicted seconds of a step as the engine built it: what its rows run, see and visit.

`core.rates.predict` knows runs of rows that do everything. A step knows more: which rows a gate
takes out of a sublayer, how many keys a `Keep` has left, which blocks a pattern visits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Ints, Longs
from ockham.core.choices import NO_CHOICE, NUMBERS, SHARES, Choices
from ockham.core.cost import ModelCost, sum_costs
from ockham.core.rates import (
    Rates,
    fits_cache,
    loops_seconds,
    products_seconds,
    state_fits_cache,
    values_seconds,
)
from ockham.core.step import GroupRows, Step
from ockham.core.visits import BLOCK_KEYS

SUMMARY_KEYS = 16
"""Keys that one summary stands for, by which rows choose blocks."""


class StepPredictor:
    """Predicts the seconds in the backend of the steps of one model."""

    def __init__(self, cost: ModelCost, rates: Rates, neurons: Mapping[int, int]) -> None:
        """`neurons` are those of each operation that is a feed-forward."""
        self._cost, self._rates, self._neurons = cost, rates, neurons
        self._parts: dict[tuple[int, ...], ModelCost] = {}
        self._by_rows: dict[tuple[tuple[int, ...], int, int, bool], float] = {}
        self._loops_s = loops_seconds(cost, rates)

    def seconds(self, step: Step, left_out: dict[int, Longs]) -> float:
        """Of all operations of the program. `left_out` is `StepOutput.left_out`, as it is
        foretold."""
        logits = len(step.wants_logits) + len(step.wants_argmax)
        cached = fits_cache(self._cost, self._rates, step.rows, logits)
        seconds = self._loops_s
        for operations, rows in _runs(len(self._cost.operations), step):
            part = self._part(operations)
            count = step.rows if rows is None else len(rows)
            seconds += self._rowwise(operations, part, count, logits, cached)
            if count:
                seconds += self._attention(step, part, rows, left_out)
        return seconds - self._narrowed(step, cached)

    # -- inside --------------------------------------------------------------------------------

    def _part(self, operations: tuple[int, ...]) -> ModelCost:
        """The cost of these operations alone."""
        if not operations:
            return self._cost
        found = self._parts.get(operations)
        if found is None:
            ops = [self._cost.operations[number] for number in operations]
            found = self._parts[operations] = sum_costs(ops, self._cost.groups)
        return found

    def _rowwise(
        self, operations: tuple[int, ...], part: ModelCost, rows: int, logits: int, cached: bool
    ) -> float:
        """What does not depend on the keys."""
        if not rows:
            return 0.0
        key = (operations, rows, logits, cached)
        found = self._by_rows.get(key)
        if found is None:
            found = self._by_rows[key] = products_seconds(
                part, self._rates, rows, logits, cached
            ) + values_seconds(part, self._rates, rows, logits)
        return found

    def _narrowed(self, step: Step, cached: bool) -> float:
        """What is not computed of the feed-forwards of which all rows run the first neurons."""
        seconds = 0.0
        for number, neurons in step.leading.items():
            whole_s = self._rowwise((number,), self._part((number,)), step.rows, 0, cached)
            seconds += whole_s * (1.0 - neurons / self._neurons[number])
        return seconds

    def _attention(
        self, step: Step, part: ModelCost, rows: Ints | None, left_out: dict[int, Longs]
    ) -> float:
        rate, read_bytes_per_s = self._rates.attention, self._rates.read_bytes_per_s
        sequence = step.sequence if rows is None else step.sequence[rows]
        firsts = np.flatnonzero(np.diff(sequence, prepend=-1))
        seconds = 0.0
        for number, (cost, group) in enumerate(zip(part.groups, step.groups, strict=True)):
            if not cost.layers:
                continue
            every = group.keys_seen
            seen: Longs = (every if rows is None else every[rows]).astype(np.int64)
            window = cost.window or int(seen.max())
            keys = cost.layers * np.add.reduceat(np.minimum(seen, window), firsts).astype(float)
            if cost.window is None and len(seen) > len(firsts):
                counts = np.diff(firsts, append=len(seen))
                to_ends = np.add.reduceat(-seen % BLOCK_KEYS, firsts)
                keys += cost.layers * np.where(counts > 1, to_ends, 0)
            high = np.maximum.reduceat(seen, firsts)
            low = np.maximum(np.minimum.reduceat(seen, firsts) - window, 0)
            cells = cost.layers * (high - low).astype(float)
            if not cost.causal:  # every row sees what the last one does
                counts = np.diff(firsts, append=len(seen))
                keys = cost.layers * counts * high.astype(float)
            if group.visits is not None:
                _leave_out(group, step, firsts, rows, window, cost.kv_heads, keys, cells)
            if number in left_out:
                _choose(left_out[number], rows, firsts, cost.kv_heads, keys, cells)
            compute_s = cells * rate.cell_s + keys * rate.key_s + cost.layers * rate.run_s
            nbytes = cells * (cost.cell_bytes / cost.layers)
            read_s = nbytes / (read_bytes_per_s * rate.stream)
            if (read_s > compute_s).any():  # what several sequences read comes from memory once
                distinct = _distinct_share(group)
                read_s *= distinct
                if state_fits_cache(self._cost, self._rates, float(nbytes.sum()) * distinct):
                    read_s[:] = 0.0
            seconds += float(np.maximum(compute_s, read_s).sum())
        return seconds


def _distinct_share(group: GroupRows) -> float:
    """Of the pages that the sequences of a step read, the share that is left if each counts
    once."""
    pages = group.tables.pages[group.tables.pages >= 0]
    return len(np.unique(pages)) / max(1, len(pages))


def foretold(step: Step, cost: ModelCost) -> dict[int, Longs]:
    """`StepOutput.left_out` of rows that choose what they visit: as many blocks as their choice
    names, whichever those are."""
    found = {}
    for number, group in enumerate(step.groups):
        if group.choices is not None and (group.choices.rows != NO_CHOICE).any():
            heads = cost.groups[number].kv_heads
            found[number] = _foretold(group.choices, group.keys_seen, heads)
    return found


def _foretold(choices: Choices, keys_seen: Ints, kv_heads: int) -> Longs:
    """(3, R): keys that are left out, bytes that are read to choose, cells that are read; summed
    over layers and heads. Cells are read once for consecutive rows of a block of queries, at the
    last of them."""
    found: Longs = np.zeros((3, len(keys_seen)), np.int64)
    numbers = choices.numbers.reshape(-1, NUMBERS)
    shares = choices.shares.reshape(-1, SHARES)
    layers = choices.layers.reshape(len(choices.choosers), -1).sum(axis=1)
    last = np.append(np.diff(keys_seen) != 1, True) | (keys_seen % BLOCK_KEYS == 0)
    for row in np.flatnonzero(choices.rows != NO_CHOICE).tolist():
        which = int(choices.rows[row])
        first, until, tokens, sinks, local, _, among, _ = numbers[which].tolist()
        keys = int(keys_seen[row])
        if not first < keys <= until:
            continue
        among = keys if among < 0 else min(among, keys)
        wanted = max(tokens, ceil(float(shares[which, 0]) * among))
        visited = BLOCK_KEYS * max(-(-wanted // BLOCK_KEYS), sinks + local) + keys - among
        visited = min(keys, visited)
        heads = int(layers[which]) * kv_heads
        summaries = -(-among // SUMMARY_KEYS)
        cells = visited * heads if last[row] else 0
        found[:, row] = (keys - visited) * heads, summaries * heads, cells
    return found


def _runs(operations: int, step: Step) -> Iterable[tuple[tuple[int, ...], Ints | None]]:
    """The operations that the same rows run, by number, with their rows; () stands for all
    operations, None for all rows."""
    if not step.active:
        yield (), None
        return
    left = set(range(operations))
    for active in step.active:
        own = tuple(range(active.start, active.stop))
        left -= set(own)
        yield own, active.rows
    yield tuple(sorted(left)), None


def _leave_out(
    group: GroupRows,
    step: Step,
    firsts: npt.NDArray[np.intp],
    rows: Ints | None,
    window: int,
    kv_heads: int,
    keys: Doubles,
    cells: Doubles,
) -> None:
    """Take from keys and cells of each sequence what its pattern does not visit."""
    assert group.visits is not None, "only then is anything left out"
    sequence = step.sequence if rows is None else step.sequence[rows]
    for place, first in enumerate(firsts.tolist()):
        begin = int(np.searchsorted(step.sequence, sequence[first]))
        end = int(np.searchsorted(step.sequence, sequence[first], "right"))
        high = group.keys_seen[begin:end]
        low = np.maximum(high - window, 0)
        skipped = group.visits.skipped(slice(begin, end), low, high)
        share = 1.0
        if rows is not None:  # of those rows that run the layer
            share = int((sequence == sequence[first]).sum()) / (end - begin)
        keys[place] -= share * skipped.keys / kv_heads
        cells[place] -= share * skipped.cells / kv_heads


def _choose(
    found: Longs,
    rows: Ints | None,
    firsts: npt.NDArray[np.intp],
    kv_heads: int,
    keys: Doubles,
    cells: Doubles,
) -> None:
    """Take from keys and cells of each sequence what its rows choose to leave out, and add the
    summaries that they look at."""
    own = found if rows is None else found[:, rows]
    left, summaries, _ = np.add.reduceat(own, firsts, axis=1) / kv_heads
    counts = np.diff(firsts, append=own.shape[1])
    keys += summaries - left
    cells += (summaries - left) / counts
