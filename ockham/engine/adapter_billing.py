"""Books what adapters cost: their products, and the bytes of their matrices, which the rows of one
adapter share in a step."""

from __future__ import annotations

from collections.abc import Iterable

from ockham.core.ledger import Ledger, divide
from ockham.engine.adapters import HeldAdapter
from ockham.engine.sequence import Sequence

Rows = tuple[Sequence, int]
"""A sequence, and its rows in a step."""


def book_adapters(rows: Iterable[Rows], steps: int, saved_by: str, total: Ledger) -> None:
    """Book so many steps with the same rows. What a sequence need not read, because others of its
    adapter are in the step, is saved under `saved_by`."""
    users: dict[int, tuple[HeldAdapter, list[Rows]]] = {}
    for sequence, count in rows:
        if sequence.adapter is not None:
            users.setdefault(id(sequence.adapter), (sequence.adapter, []))[1].append(
                (sequence, count)
            )
    for adapter, own in users.values():
        total.weight_bytes += steps * adapter.nbytes
        shares = divide(adapter.nbytes, [count for _, count in own])
        for (sequence, count), share in zip(own, shares, strict=True):
            for book in (sequence.ledger, total):
                book.flops += steps * count * adapter.flops
                if share < adapter.nbytes:
                    book.save(saved_by, nbytes=steps * (adapter.nbytes - share))
            sequence.ledger.weight_bytes += steps * share
