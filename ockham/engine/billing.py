"""Books each step in the ledgers of the sequences that had rows in it, and in the engine's own."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

from ockham.core.cost import ModelCost
from ockham.core.ledger import Ledger, divide
from ockham.core.visits import Skipped
from ockham.engine.batch import Walk, runs_of
from ockham.engine.part import Part
from ockham.engine.runner.decoding import Decoding
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.tree import ROOT

BATCHING = "batching"
"""Weight bytes not read because several sequences' rows shared one pass over the weights."""
FORK = "fork"
"""Prompt rows not computed because the choices of one request share their prompt."""
PREEMPTION = "preemption"
"""Rows computed again because their state had been given up."""

SCORING = "prompt_logprobs"
"""Rows computed again though their state was held, because their logits were wanted."""


def book_step(parts: list[Part], cost: ModelCost, total: Ledger) -> None:
    """Book one step. `total` gets the step's own figures, not the sum of the shares."""
    rows, logits = sum(p.rows for p in parts), sum(p.head_rows for p in parts)
    weight_bytes = cost.weight_bytes(rows, logits)
    total.rows += rows
    total.flops += rows * cost.linear_flops + logits * cost.head_flops
    total.weight_bytes += weight_bytes
    total.state_written_bytes += cost.state_written_bytes(rows)
    for part, share in zip(parts, divide(weight_bytes, [p.rows for p in parts]), strict=True):
        dropped = part.sequence.dropped
        attention_flops = sum(
            cost.attention_flops(first + 1, rows, dropped) for first, rows in part.runs
        )
        read_bytes = cost.state_read_bytes(part.start + 1, part.end - part.start, dropped)
        if dropped:
            whole = sum(cost.attention_flops(first + 1, rows) for first, rows in part.runs)
            whole_bytes = cost.state_read_bytes(part.start + 1, part.end - part.start)
            _book_unseen(part.sequence, whole - attention_flops, whole_bytes - read_bytes, total)
        if part.skipped:
            flops, nbytes = book_skipped(part.sequence, part.skipped, cost, total)
            attention_flops, read_bytes = attention_flops - flops, read_bytes - nbytes
        total.flops += attention_flops
        total.state_read_bytes += read_bytes
        _book_part(part, cost, share, attention_flops, read_bytes, total)


def _book_part(
    part: Part,
    cost: ModelCost,
    weight_bytes: int,
    attention_flops: int,
    read_bytes: int,
    total: Ledger,
) -> None:
    sequence, ledger = part.sequence, part.sequence.ledger
    ledger.rows += part.rows
    ledger.flops += (
        part.rows * cost.linear_flops + part.head_rows * cost.head_flops + attention_flops
    )
    ledger.weight_bytes += weight_bytes
    ledger.state_read_bytes += read_bytes
    ledger.state_written_bytes += cost.state_written_bytes(part.rows)

    once = sequence.computed_once
    again = [(first, max(0, min(once - first, rows))) for first, rows in part.runs]
    fresh_prompt = sum(
        max(0, min(sequence.prompt_tokens, first + rows) - first - repeated)
        for (first, rows), (_, repeated) in zip(part.runs, again, strict=True)
    )
    alone = cost.weight_bytes(part.rows, part.head_rows)
    for book in (ledger, total):
        book.prompt_tokens_computed += fresh_prompt
        if alone > weight_bytes:
            book.save(BATCHING, nbytes=alone - weight_bytes)
        for first, repeated in again:
            if repeated:
                name = sequence.redone_by or PREEMPTION
                flops = cost.row_flops(first + 1, repeated, 0, sequence.dropped)
                book.waste(name, repeated, flops)


def book_decoding(decoding: Decoding, cost: ModelCost, total: Ledger) -> None:
    """Book the steps of a decoding that no ledger holds yet: what `book_step` would have booked
    for each of them, and the tokens that they gave."""
    steps, rows = decoding.unbilled, len(decoding.sequences)
    if not steps:
        return
    weight_bytes, alone = cost.weight_bytes(rows, rows), cost.weight_bytes(1, 1)
    written = cost.state_written_bytes(1)
    total.rows += steps * rows
    total.generated_tokens += steps * rows
    total.flops += steps * rows * (cost.linear_flops + cost.head_flops)
    total.weight_bytes += steps * weight_bytes
    total.state_written_bytes += steps * rows * written
    shares = divide(weight_bytes, [1] * rows)
    for row, (sequence, first, dropped, share) in enumerate(
        zip(decoding.sequences, decoding.first_tokens, decoding.dropped, shares, strict=True)
    ):
        ledger = sequence.ledger
        attention_flops = cost.attention_flops(first + 1, steps, dropped)
        read_bytes = cost.decode_read_bytes(first + 1, steps, dropped)
        if dropped:
            whole = cost.attention_flops(first + 1, steps)
            whole_bytes = cost.decode_read_bytes(first + 1, steps)
            _book_unseen(sequence, whole - attention_flops, whole_bytes - read_bytes, total)
        if sequence.pattern is not None:
            flops, nbytes = book_skipped(sequence, decoding.skipped(row), cost, total)
            attention_flops, read_bytes = attention_flops - flops, read_bytes - nbytes
        total.flops += attention_flops
        total.state_read_bytes += read_bytes
        ledger.rows += steps
        ledger.generated_tokens += steps
        ledger.flops += steps * (cost.linear_flops + cost.head_flops) + attention_flops
        ledger.weight_bytes += steps * share
        ledger.state_read_bytes += read_bytes
        ledger.state_written_bytes += steps * written
        if alone > share:
            for book in (ledger, total):
                book.save(BATCHING, nbytes=steps * (alone - share))
    decoding.billed()


def book_skipped(
    sequence: Sequence, skipped: Many[Skipped], cost: ModelCost, total: Ledger
) -> tuple[int, int]:
    """Book the keys that a sequence's pattern left out. Their FLOPs and bytes."""
    assert sequence.pattern is not None, "only a pattern leaves keys out"
    flops, nbytes = cost.skipped(skipped)
    if flops or nbytes:
        for book in (sequence.ledger, total):
            book.save(sequence.pattern.name, flops=flops, nbytes=nbytes)
    return flops, nbytes


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
    for book in (sequence.ledger, total):
        book.state_read_bytes += cost.state_written_bytes(cells)
        book.state_written_bytes += cost.state_written_bytes(cells)


def book_draft(walk: Walk, names: list[str], cost: ModelCost, total: Ledger) -> None:
    """Book what a draft saved, and what of it was computed for nothing.

    Each drafted token that was reached saved a step that would have read all weights for one row;
    those that do not stand in the sequence are waste. `names` are those of the drafters."""
    part, tree = walk.part, walk.tree
    reached = {at for at, _ in walk.followed if at != ROOT}
    logits = part.head_rows > 0
    for number, sources in enumerate(tree.sources):
        name = names[sources[0][0]]
        for book in (part.sequence.ledger, total):
            if number in reached:
                book.save(name, 1, nbytes=cost.weight_bytes(1, 1))
            elif number not in walk.accepted:
                cells = part.start + 1 + tree.depths[number]
                book.waste(name, 1, cost.row_flops(cells, 1, logits))


def book_spared(
    sequence: Sequence,
    spared: Iterable[tuple[int, int]],
    name: str,
    cost: ModelCost,
    total: Ledger,
) -> None:
    """Book the rows of completions that the search `name` need not generate: of each, those from
    how many tokens on, and to how many."""
    tokens = flops = 0
    for start, stop in spared:
        rows = max(0, stop - start)
        tokens += rows
        flops += cost.row_flops(sequence.prompt_tokens + start + 1, rows, rows) if rows else 0
    if tokens:
        for book in (sequence.ledger, total):
            book.save(name, tokens, flops)


def book_dropped(
    sequence: Sequence, own_from: int, name: str, cost: ModelCost, total: Ledger
) -> None:
    """Book the rows of a branch that its search gave up, from the cell `own_from` on."""
    rows = sequence.computed_once - own_from
    if rows > 0:
        for book in (sequence.ledger, total):
            book.waste(name, rows, cost.row_flops(own_from + 1, rows, rows))


def book_fork(child: Sequence, cost: ModelCost, total: Ledger) -> None:
    """Book the cells that a forked sequence did not have to compute. The logits of each of its
    tokens would have been wanted."""
    tokens = child.computed
    logits = max(0, tokens - child.prompt_tokens + 1)
    for book in (child.ledger, total):
        book.save(FORK, tokens, cost.row_flops(1, tokens, logits))
