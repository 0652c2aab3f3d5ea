"""What searches and choices put on the bill: what forks share, was given up, and was spared."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ockham.core.cost import ModelCost
from ockham.core.ledger import Ledger
from ockham.engine.billing import row_flops
from ockham.engine.sequence import Sequence

FORK = "fork"
"""Prompt rows not computed because the choices of one request share their prompt."""
CALLERS_SEARCH = "the caller's search"
"""What is booked by a search that the caller brings, and that has no name."""


def work_of(bill: Ledger, name: str) -> Ledger:
    """What the bill of a companion's text has of work that was done for the search `name`, without
    tokens and times: those are counted where the text is used."""
    wasted = {name if each == CALLERS_SEARCH else each: was for each, was in bill.wasted.items()}
    counted = ("prompt_tokens", "prompt_tokens_computed", "prompt_tokens_reused")
    told = ("generated_tokens", "queue_s", "prefill_s", "decode_s")
    return msgspec.structs.replace(bill, wasted=wasted, **dict.fromkeys([*counted, *told], 0))


def book_unread(sequence: Sequence, name: str, cost: ModelCost, total: Ledger) -> None:
    """Book the prompt of a request that the search `name` has answered without the model."""
    rows = sequence.prompt_tokens
    flops = row_flops(sequence, 0, rows, 0, cost)
    for book in (sequence.ledger, total):
        book.save(name, rows, flops)


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
        first = sequence.prompt_tokens + start
        flops += row_flops(sequence, first, rows, rows, cost) if rows else 0
    if tokens:
        for book in (sequence.ledger, total):
            book.save(name, tokens, flops)


def book_dropped(
    sequence: Sequence, own_from: int, name: str, cost: ModelCost, total: Ledger
) -> None:
    """Book the rows of a branch that its search gave up, from the cell `own_from` on."""
    rows = sequence.computed_once - own_from
    if rows > 0:
        flops = row_flops(sequence, own_from, rows, rows, cost)
        for book in (sequence.ledger, total):
            book.waste(name, rows, flops)


def book_fork(child: Sequence, cost: ModelCost, total: Ledger) -> None:
    """Book the cells that a forked sequence did not have to compute. The logits of each of its
    tokens would have been wanted."""
    tokens = child.computed
    logits = max(0, tokens - child.prompt_tokens + 1)
    flops = row_flops(child, 0, tokens, logits, cost)
    for book in (child.ledger, total):
        book.save(FORK, tokens, flops)
