"""Books each step in the ledgers of the sequences that had rows in it, and in the engine's own."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many

import numpy as np

from ockham.cache.state import State
from ockham.core.arrays import Ints, Longs
from ockham.core.cost import ATTENTION, FEED_FORWARD, RUNS_ALL, ModelCost, Skips
from ockham.core.ledger import Ledger, Recall, divide
from ockham.core.sparing import ALL, SKIPPED
from ockham.core.step import Step, StepOutput
from ockham.core.visits import EVERY, Skipped
from ockham.engine.adapter_billing import book_adapters
from ockham.engine.batch import Walk, runs_of
from ockham.engine.gates import Run, runs_of_rows, skips_of
from ockham.engine.known import BOOK
from ockham.engine.part import Part
from ockham.engine.passes import Deep
from ockham.engine.runner.decoding import Decoding
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.tree import ROOT
from ockham.kernels.choosers import alike_flops

BATCHING = "batching"
"""Weight bytes not read because several sequences' rows shared one pass over the weights."""
PREEMPTION = "preemption"
"""Rows computed again because their state had been given up."""

PASSES = "passes"
"""Passes through layers that run several times which rows left out, by themselves or as asked."""

SCORING = "prompt_logprobs"
"""Rows computed again though their state was held, because their logits were wanted."""


def book_step(parts: list[Part], cost: ModelCost, total: Ledger) -> None:
    """Book one step. `total` gets the step's own figures, not the sum of the shares."""
    total.rows += sum(p.rows for p in parts)
    weight_bytes, shares = _weight_bytes(parts, cost)
    total.weight_bytes += weight_bytes
    for part, share in zip(parts, shares, strict=True):
        sequence, own = part.sequence, _own_of_part(part, cost)
        spared_flops = 0 if part.spared is None else _spared_flops(part.spared, cost)
        flops, read_bytes = _ran(part, part.gated, cost)
        flops -= spared_flops
        written_bytes = sum(
            rows * cost.without(skips).state_written_bytes(1) for skips, rows in _runs(part)
        )
        alone = weight_bytes if len(parts) == 1 else _weight_bytes([part], cost)[0]
        if spared_flops or part.deep is not None or any(skips for skips, _ in part.gated):
            whole_flops, whole_bytes = _ran(part, (), cost)
            whole_bytes += cost.weight_bytes(part.rows, part.head_rows)
            whole_bytes += cost.state_written_bytes(part.rows)
            done = alone + read_bytes + written_bytes
            _book_gate(sequence, whole_flops - flops, whole_bytes - done, total)
        if sequence.dropped:
            seen_flops, seen_bytes = _ran(part, part.gated, cost, sequence.dropped)
            seen_flops -= spared_flops
            _book_unseen(sequence, flops - seen_flops, read_bytes - seen_bytes, total)
            flops, read_bytes = seen_flops, seen_bytes
        if part.skipped:
            skipped_flops, nbytes = book_skipped(part.sequence, part.skipped, own, total)
            flops, read_bytes = flops - skipped_flops, read_bytes - nbytes
        for book in (part.sequence.ledger, total):
            book.flops += flops
            book.state_read_bytes += read_bytes
            book.state_written_bytes += written_bytes
        _book_part(part, cost, alone, share, total)
    book_adapters(((part.sequence, part.rows) for part in parts), 1, BATCHING, total)


def book_known(tokens: int, cost: ModelCost, total: Ledger) -> Ledger:
    """The bill of a text of so many tokens that was known already, booked in `total` too."""
    bill = Ledger(prompt_tokens=tokens, prompt_tokens_reused=tokens)
    bill.save(BOOK, tokens, cost.row_flops(1, tokens, 0), cost.weight_bytes(tokens, 0))
    total.add(bill)
    return bill


def _runs(part: Part) -> list[Run]:
    """What the rows of a part skip, neighbours that skip the same together."""
    return list(part.gated) or [(RUNS_ALL, part.rows)]


def _ran(part: Part, gated: Many[Run], cost: ModelCost, dropped: Many[int] = ()) -> tuple[int, int]:
    """FLOPs of a part's rows, which skip what `gated` says, and the state bytes that they read,
    where each group of layers has `dropped` so many cells."""
    if gated and part.deep is not None:
        flops, read_bytes = part.deep.ran(part.start, part.rows, cost)
        return flops + part.head_rows * cost.head_flops, read_bytes
    if len(gated) < 2:
        own = cost.without(gated[0][0]) if gated else cost
        attention = sum(own.attention_flops(first + 1, rows, dropped) for first, rows in part.runs)
        return (
            part.rows * own.linear_flops + part.head_rows * own.head_flops + attention,
            own.state_read_bytes(part.start + 1, part.end - part.start, dropped),
        )
    flops, read_bytes = part.head_rows * cost.head_flops, 0
    ends: dict[Skips, int] = {}
    """The cell after the last one that is computed with what skips this."""
    for skips, first, rows in _cut(gated, part.runs):
        own = cost.without(skips)
        flops += rows * own.linear_flops + own.attention_flops(first + 1, rows, dropped)
        ends[skips] = max(ends.get(skips, 0), first + rows)
    # A layer is read as far as the last row sees that attends there. Later rows attend in some of
    # the layers of earlier ones: those that only the earlier ones attend in are the difference.
    kinds = sorted(ends, key=lambda skips: sum(of == ATTENTION for _, of in skips))
    end = 0
    for number, skips in enumerate(kinds):
        end = max(end, ends[skips])
        cells = part.start + 1, end - part.start, dropped
        read_bytes += cost.without(skips).state_read_bytes(*cells)
        if number + 1 < len(kinds):
            read_bytes -= cost.without(kinds[number + 1]).state_read_bytes(*cells)
    return flops, read_bytes


def _spared_flops(spared: Ints, cost: ModelCost) -> int:
    """FLOPs of the neurons that rows did not run: `Part.spared`, or some columns of it."""
    found = 0
    for layer in np.flatnonzero(spared.any(axis=1)).tolist():
        own = cost.only((layer, FEED_FORWARD))
        ran, whole = _neurons(spared[layer], own)
        found += int((own.linear_flops * (whole - ran) // whole).sum())
    return found


def _neurons(spared: Ints, own: ModelCost) -> tuple[Longs, int]:
    """How many neurons of a feed-forward rows ran, and of how many."""
    whole = max(1, own.gate_values)
    return np.where(spared == SKIPPED, 0, np.where(spared == ALL, whole, spared)), whole


def _cut(gated: Many[Run], cells: Many[tuple[int, int]]) -> Iterator[tuple[Skips, int, int]]:
    """Runs of cells, given as (first, rows), cut where their rows skip something else."""
    kinds = iter(gated)
    skips, left = next(kinds)
    for first, rows in cells:
        while rows:
            if not left:
                skips, left = next(kinds)
            now = min(rows, left)
            yield skips, first, now
            first, rows, left = first + now, rows - now, left - now


def _own(sequence: Sequence, cost: ModelCost, place: int = 0) -> ModelCost:
    """What the row of a sequence in a place costs: the model's figures, less those of what it
    skips."""
    return cost.without(skips_of(sequence.gate, place))


def _own_of_part(part: Part, cost: ModelCost) -> ModelCost:
    """The same of the first row of a part."""
    return cost.without(part.gated[0][0]) if part.gated else cost


def row_flops(
    sequence: Sequence,
    first: int,
    rows: int,
    logits: int,
    cost: ModelCost,
    dropped: Many[int] = (),
) -> int:
    """FLOPs of consecutive rows of a sequence, the first of them in the place `first`, `logits` of
    which want logits."""
    places = np.arange(first, first + rows, dtype=np.int32)
    found = logits * cost.head_flops
    for skips, start, count in _cut(runs_of_rows(sequence.gate, places), [(first, rows)]):
        found += cost.without(skips).row_flops(start + 1, count, 0, dropped)
    return found


def _book_gate(sequence: Sequence, flops: int, nbytes: int, total: Ledger) -> None:
    """Book what a sequence's rows did not run, against the same sequence alone without a gate."""
    gate = sequence.gate
    name = PASSES if gate is None or gate.of.deeper is not None else gate.name
    for book in (sequence.ledger, total):
        book.save(name, flops=flops, nbytes=nbytes)


def _weight_bytes(parts: list[Part], cost: ModelCost) -> tuple[int, list[int]]:
    """The weight bytes that a step reads, and each part's share: those of an operation are divided
    among the rows that ran it."""
    runs = [run for part in parts for run in _runs(part)]
    decided = [part.spared for part in parts if part.spared is not None and part.spared.any()]
    every = cost
    if decided:
        cost = cost.without(_feed_forwards(len(decided[0])))
    heads: list[int] = []
    for part in parts:
        heads += [part.head_rows, *[0] * (len(_runs(part)) - 1)]
    nbytes, of_runs = _shared_bytes(runs, heads, cost)
    rest = iter(of_runs)
    shares = [sum(next(rest) for _ in _runs(part)) for part in parts]
    for layer in range(len(decided[0]) if decided else 0):
        sublayer, ran = (layer, FEED_FORWARD), []
        own = every.only(sublayer)
        whole, widest, running = max(1, own.gate_values), 0, 0
        for part in parts:
            rows = sum(rows for skips, rows in _runs(part) if sublayer not in skips)
            if rows and part.spared is not None and part.spared[layer].any():
                neurons, _ = _neurons(part.spared[layer], own)
                widest = max(widest, int(neurons.max()))
                running += int((neurons > 0).sum())
                ran.append(int(neurons.sum()))
            else:
                widest, running = whole if rows else widest, running + rows
                ran.append(rows * whole)
        read = own.weight_bytes(running, 0) * widest // whole if running else 0
        nbytes += read
        shares = [a + b for a, b in zip(shares, divide(read, ran), strict=True)]
    return nbytes, shares


def _feed_forwards(layers: int) -> Skips:
    return frozenset((layer, FEED_FORWARD) for layer in range(layers))


def _shared_bytes(runs: list[Run], heads: list[int], cost: ModelCost) -> tuple[int, list[int]]:
    """The weight bytes of a step of these runs of rows, so many of each of which want logits, and
    each run's share."""
    rows = [count for _, count in runs]
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(s for s, _ in runs))}
    if list(kinds) == [RUNS_ALL]:
        nbytes = cost.weight_bytes(sum(rows), sum(heads))
        return nbytes, divide(nbytes, rows)
    total, shares = 0, [0] * len(runs)
    for ran_by, of_some in cost.shared(tuple(kinds)):
        ran = [count if ran_by[kinds[skips]] else 0 for skips, count in runs]
        wanted = sum(h for h, (s, _) in zip(heads, runs, strict=True) if ran_by[kinds[s]])
        nbytes = of_some.weight_bytes(sum(ran), wanted) if any(ran) else 0
        total += nbytes
        shares = [a + b for a, b in zip(shares, divide(nbytes, ran), strict=True)]
    return total, shares


def _book_part(part: Part, cost: ModelCost, alone: int, weight_bytes: int, total: Ledger) -> None:
    """Book a part's rows and its share of the weights, of which it would read `alone` bytes by
    itself."""
    sequence, ledger = part.sequence, part.sequence.ledger
    ledger.rows += part.rows
    ledger.weight_bytes += weight_bytes

    once = sequence.computed_once
    again = [(first, max(0, min(once - first, rows))) for first, rows in part.runs]
    fresh_prompt = sum(
        max(0, min(sequence.prompt_tokens, first + rows) - first - repeated)
        for (first, rows), (_, repeated) in zip(part.runs, again, strict=True)
    )
    for book in (ledger, total):
        book.prompt_tokens_computed += fresh_prompt
        if alone > weight_bytes:
            book.save(BATCHING, nbytes=alone - weight_bytes)
        for first, repeated in again:
            if repeated:
                name = sequence.redone_by or PREEMPTION
                flops = row_flops(sequence, first, repeated, 0, cost, sequence.dropped)
                if part.deep is not None:  # its rows are one run
                    flops = part.deep.ran(first, repeated, cost)[0]
                if part.spared is not None:  # without a splice: its rows are one run
                    flops -= _spared_flops(part.spared[:, :repeated], cost)
                book.waste(name, repeated, flops)


def book_decoding(
    decoding: Decoding, cost: ModelCost, total: Ledger, passes: Many[Skips] = ()
) -> None:
    """Book the steps of a decoding that no ledger holds yet: what `book_step` would have booked
    for each of them, and the tokens that they gave. `passes` are what a row skips that takes 1, 2,
    ... passes of a model whose rows may leave some out."""
    steps, rows = decoding.unbilled, len(decoding.sequences)
    if not steps:
        return
    if decoding.deep:
        _book_deep(decoding, cost, total, tuple(passes))
        return
    ways = [
        skips_of(sequence.gate, first)
        for sequence, first in zip(decoding.sequences, decoding.first_tokens, strict=True)
    ]
    weight_bytes, shares, alone_bytes = _decoded_weights(decoding, ways, steps, cost)
    total.rows += steps * rows
    total.generated_tokens += steps * rows
    total.weight_bytes += weight_bytes
    for row, (sequence, first, dropped, share) in enumerate(
        zip(decoding.sequences, decoding.first_tokens, decoding.dropped, shares, strict=True)
    ):
        ledger, own = sequence.ledger, cost.without(ways[row])
        flops, read_bytes = _decoded(own, first, steps)
        spared_flops = 0
        if decoding.spared:
            spared_flops = _spared_flops(np.stack(decoding.spared, axis=1)[..., row], cost)
        flops -= spared_flops
        written_bytes = own.state_written_bytes(steps)
        alone = alone_bytes[row]
        if ways[row] or spared_flops:
            whole_flops, whole_bytes = _decoded(cost, first, steps)
            whole_bytes += steps * cost.weight_bytes(1, 1) + cost.state_written_bytes(steps)
            done = alone + read_bytes + written_bytes
            _book_gate(sequence, whole_flops - flops, whole_bytes - done, total)
        if dropped:
            seen_flops, seen_bytes = _decoded(own, first, steps, dropped)
            seen_flops -= spared_flops
            _book_unseen(sequence, flops - seen_flops, read_bytes - seen_bytes, total)
            flops, read_bytes = seen_flops, seen_bytes
        if decoding.visited[row] is not None:
            skipped_flops, nbytes = book_skipped(sequence, decoding.skipped(row, own), own, total)
            flops, read_bytes = flops - skipped_flops, read_bytes - nbytes
        ledger.rows += steps
        ledger.generated_tokens += steps
        ledger.weight_bytes += share
        for book in (ledger, total):
            book.flops += flops
            book.state_read_bytes += read_bytes
            book.state_written_bytes += written_bytes
            if alone > share:
                book.save(BATCHING, nbytes=alone - share)
    book_adapters(((sequence, 1) for sequence in decoding.sequences), steps, BATCHING, total)
    decoding.billed()


def _book_deep(
    decoding: Decoding, cost: ModelCost, total: Ledger, passes: tuple[Skips, ...]
) -> None:
    """The same of a model whose rows may leave passes out."""
    took = np.stack(decoding.deep, axis=1)  # (passes, steps, rows)
    steps, rows = took.shape[1:]
    ways = [[passes[count] for count in step] for step in took.sum(axis=0).tolist()]
    found = [_shared_bytes([(skips, 1) for skips in of], [1] * rows, cost) for of in ways]
    weight_bytes = sum(nbytes for nbytes, _ in found)
    total.rows += steps * rows
    total.generated_tokens += steps * rows
    total.weight_bytes += weight_bytes
    for row, (sequence, first, held) in enumerate(
        zip(decoding.sequences, decoding.first_tokens, decoding.held, strict=True)
    ):
        ledger, share = sequence.ledger, sum(shares[row] for _, shares in found)
        flops, read_bytes = Deep(passes, took[..., row], held).ran(first, steps, cost, apart=True)
        flops += steps * cost.head_flops
        own = [cost.without(of[row]) for of in ways]
        written_bytes = sum(each.state_written_bytes(1) for each in own)
        alone = sum(each.weight_bytes(1, 1) for each in own)
        whole_flops, whole_bytes = _decoded(cost, first, steps)
        whole_bytes += steps * cost.weight_bytes(1, 1) + cost.state_written_bytes(steps)
        done = alone + read_bytes + written_bytes
        _book_gate(sequence, whole_flops - flops, whole_bytes - done, total)
        ledger.rows += steps
        ledger.generated_tokens += steps
        ledger.weight_bytes += share
        for book in (ledger, total):
            book.flops += flops
            book.state_read_bytes += read_bytes
            book.state_written_bytes += written_bytes
            if alone > share:
                book.save(BATCHING, nbytes=alone - share)
    decoding.billed()


def _decoded_weights(
    decoding: Decoding, ways: Many[Skips], steps: int, cost: ModelCost
) -> tuple[int, list[int], list[int]]:
    """The weight bytes that the unbilled steps of a decoding read, each sequence's share of them,
    and what it would have read alone."""
    rows, every = len(ways), cost
    layers = len(decoding.spared[0]) if decoding.spared else 0
    cost = cost.without(_feed_forwards(layers))
    nbytes, shares = _shared_bytes([(skips, 1) for skips in ways], [1] * rows, cost)
    total = steps * nbytes
    shares = [steps * share for share in shares]
    alone = [steps * cost.without(skips).weight_bytes(1, 1) for skips in ways]
    if layers:
        spared = np.stack(decoding.spared)  # (steps, layers, rows)
        for layer in range(layers):
            sublayer = (layer, FEED_FORWARD)
            own = every.only(sublayer)
            neurons, whole = _neurons(spared[:, layer], own)
            neurons = neurons * [sublayer not in skips for skips in ways]
            patterns, counts = np.unique(neurons, axis=0, return_counts=True)
            for pattern, count in zip(patterns.tolist(), counts.tolist(), strict=True):
                running = sum(n > 0 for n in pattern)
                if not running:
                    continue
                read = own.weight_bytes(running, 0) * max(pattern) // whole
                total += count * read
                parts = divide(read, pattern)
                shares = [a + count * b for a, b in zip(shares, parts, strict=True)]
                one = own.weight_bytes(1, 0)
                alone = [
                    a + count * (one * n // whole) for a, n in zip(alone, pattern, strict=True)
                ]
    return total, shares, alone


def _decoded(cost: ModelCost, first: int, steps: int, dropped: Many[int] = ()) -> tuple[int, int]:
    """FLOPs and state bytes read by so many steps of one row, the first of them token `first`."""
    return (
        steps * (cost.linear_flops + cost.head_flops)
        + cost.attention_flops(first + 1, steps, dropped),
        cost.decode_read_bytes(first + 1, steps, dropped),
    )


def book_skipped(
    sequence: Sequence, skipped: Many[Skipped], cost: ModelCost, total: Ledger
) -> tuple[int, int]:
    """Book the keys that a sequence's pattern left out, or that some heads dropped: the FLOPs and
    the bytes by which the rows stay below what they would have taken with all keys. What it took to
    find out which to leave out is no saving; where that is more than was left out, what is saved is
    below 0."""
    by = sequence.keeping if sequence.pattern is None else sequence.pattern
    assert by is not None, "nothing else leaves keys out"
    flops, nbytes = cost.skipped(skipped)
    flops -= sum(each.flops for each in skipped)
    nbytes -= sum(each.read_bytes for each in skipped)
    if flops or nbytes:
        for book in (sequence.ledger, total):
            book.save(by.name, flops=flops, nbytes=nbytes)
    return flops, nbytes


def book_recall(
    parts: list[Part], step: Step, output: StepOutput, state: State, total: Ledger
) -> None:
    """Book how much of the attention of sampled rows is on what they visit. In a group or a layer
    where a row leaves nothing out it is no sample."""
    wanted = step.wants_recall
    mass = np.zeros((len(wanted), 2))  # and how many samples it is of
    for number, (group, layout) in enumerate(zip(step.groups, state.groups, strict=True)):
        visits, choices = group.visits, group.choices
        for index, layer in enumerate(layout.layers):
            leaves_out = np.zeros(len(wanted), np.bool_)
            if visits is not None:
                leaves_out |= visits.query_blocks[wanted] != EVERY
            if choices is not None and number in output.left_out:
                chose = (output.left_out[number][1:, wanted] > 0).any(axis=0)
                leaves_out |= chose & choices.choosing(wanted, index)
            if layer in output.recall:
                shares = output.recall[layer][leaves_out].astype(np.float64)
                mass[leaves_out] += np.column_stack(
                    (shares.sum(axis=1), np.full(len(shares), shares.shape[1]))
                )
    row = 0
    for part in parts:
        sum_of, samples = mass[(wanted >= row) & (wanted < row + part.rows)].sum(axis=0).tolist()
        row += part.rows
        if samples:
            assert part.sequence.pattern is not None, "only a pattern leaves keys out"
            for book in (part.sequence.ledger, total):
                own = book.recall.setdefault(part.sequence.pattern.name, Recall())
                own.add(Recall(int(samples), sum_of))


def _book_unseen(sequence: Sequence, flops: int, nbytes: int, total: Ledger) -> None:
    """Book what attention did not do, and did not read, because cells were dropped."""
    assert sequence.keeping is not None, "nothing else drops cells"
    for book in (sequence.ledger, total):
        book.save(sequence.keeping.name, flops=flops, nbytes=nbytes)


def book_reuse(
    sequence: Sequence, tokens: int, held: int, name: str, cost: ModelCost, total: Ledger
) -> None:
    """Book the first `tokens` cells of an admitted sequence, which the reuse `name` had, or had
    brought back for it from farther away.

    It had `held` of them: what is more is computed again, because its logits are wanted."""
    cost = _own(sequence, cost)
    at = sequence.computed_once  # what it computed itself is no saving: alone it would have too
    again = range(max(tokens, at), held)
    if again:
        for book in (sequence.ledger, total):
            book.waste(SCORING, len(again), cost.row_flops(again.start + 1, len(again), 0))
    brought = () if sequence.fetch is None else sequence.fetch.brought
    for cells, place in (*brought, (range(tokens, tokens), name)):
        for end, source in ((min(cells.start, tokens), name), (min(cells.stop, tokens), place)):
            if end > at:
                _book_reused(sequence, range(at, end), source, cost, total)
                at = end


def _book_reused(
    sequence: Sequence, cells: range, name: str, cost: ModelCost, total: Ledger
) -> None:
    for book in (sequence.ledger, total):
        book.prompt_tokens_reused += max(0, min(cells.stop, sequence.prompt_tokens) - cells.start)
        book.save(name, len(cells), cost.row_flops(cells.start + 1, len(cells), 0))


def book_given(sequence: Sequence, stop: int, cost: ModelCost, total: Ledger) -> None:
    """Book the cells up to `stop` that were given approximately, and that it had not before."""
    assert sequence.approximation is not None, "only what is asked for is given"
    cost = _own(sequence, cost)
    start = max(sequence.computed, sequence.computed_once)
    todo = sequence.next_cells(sequence.remaining)
    todo = todo[(todo >= start) & (todo < stop)]
    tokens = stop - start - len(todo)
    if tokens <= 0:
        return
    whole = cost.row_flops(start + 1, stop - start, 0)
    computed = len(todo) * cost.linear_flops + sum(
        cost.attention_flops(first + 1, rows) for first, rows in runs_of(todo)
    )
    for book in (sequence.ledger, total):
        book.prompt_tokens_reused += tokens
        book.save(sequence.approximation.name, tokens, whole - computed)


def book_copies(sequence: Sequence, cells: int, cost: ModelCost, total: Ledger) -> None:
    """Book the state of so many cells, read in one place and written in another."""
    cost = _own(sequence, cost)
    for book in (sequence.ledger, total):
        book.state_read_bytes += cost.state_written_bytes(cells)
        book.state_written_bytes += cost.state_written_bytes(cells)


def book_reordering(sequence: Sequence, cells: range, cost: ModelCost, total: Ledger) -> None:
    """Book that cells were put in another order: their keys were read and compared, and all was
    read in one place and written in another."""
    book_copies(sequence, cells.stop, cost, total)
    for group in _own(sequence, cost).groups:
        if group.window:
            continue
        heads = (group.layers - group.shared) * group.kv_heads
        for book in (sequence.ledger, total):
            book.flops += heads * alike_flops(len(cells), group.head_dim)
            book.state_read_bytes += len(cells) * group.kept_bytes // 2


def book_draft(walk: Walk, names: list[str], cost: ModelCost, total: Ledger) -> None:
    """Book what a draft saved, and what of it was computed for nothing.

    Each drafted token that was reached saved a step that would have read all weights for one row;
    those that do not stand in the sequence are waste. `names` are those of the drafters."""
    part, tree = walk.part, walk.tree
    sequence = part.sequence
    reached = {at for at, _ in walk.followed if at != ROOT}
    logits = part.head_rows > 0
    for number, sources in enumerate(tree.sources):
        name, place = names[sources[0][0]], part.start + tree.depths[number]
        if number in walk.lenient and sequence.leniency is not None:
            name = sequence.leniency.name
        own = _own(sequence, cost, place)
        row = part.rows - len(tree.sources) + number
        flops = 0 if part.spared is None else -_spared_flops(part.spared[:, row : row + 1], cost)
        for book in (sequence.ledger, total):
            if number in reached:
                book.save(name, 1, nbytes=own.weight_bytes(1, 1))
            elif number not in walk.accepted:
                book.waste(name, 1, flops + own.row_flops(place + 1, 1, logits))
