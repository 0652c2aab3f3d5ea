"""Steps made by hand, and memory for their state."""

from __future__ import annotations

import numpy as np

from ockham.core.arrays import Ints, Longs
from ockham.core.step import Step, Tables
from ockham.kernels.base import GroupLayout
from ockham.kernels.cpu import CpuBackend, CpuPlanes

PAGE_TOKENS = 16


def no_state(backend: CpuBackend) -> CpuPlanes:
    """Planes for programs that have no attention."""
    return backend.allocate([GroupLayout((0,), 1, 16, "float32", None, 1, PAGE_TOKENS)])


def flat_step(rows: int, vocabulary: int) -> Step:
    """`rows` random tokens of one sequence, for programs that have no attention."""
    ids = np.random.default_rng(0).integers(0, vocabulary, rows).astype(np.int32)
    pages = -(-rows // PAGE_TOKENS)
    table = Tables(np.zeros(pages, np.int32), np.array([0, pages], np.int32))
    cells = np.arange(rows, dtype=np.int32)
    return _step(ids, cells, np.zeros(rows, np.int32), table, np.zeros(rows, np.int64))


def step_over(sequences: int, rows: int, keys: int) -> Step:
    """The last `rows` rows of each of so many sequences of `keys` cells, over shuffled pages."""
    pages = -(-keys // PAGE_TOKENS)
    order = np.random.default_rng(0).permutation(sequences * pages).astype(np.int32)
    table = Tables(order, np.arange(sequences + 1, dtype=np.int32) * pages)
    owner = np.repeat(np.arange(sequences, dtype=np.int32), rows)
    cells = np.tile(np.arange(keys - rows, keys, dtype=np.int32), sequences)
    ids = np.zeros(sequences * rows, np.int32)
    return _step(ids, cells, owner, table, table.slots(owner, cells, PAGE_TOKENS))


def _step(ids: Ints, cells: Ints, owner: Ints, table: Tables, slots: Longs) -> Step:
    rows = len(ids)
    return Step(
        ids=ids,
        positions=cells,
        sequence=owner,
        cells=cells,
        context=cells + 1,
        tables=(table,),
        slots=(slots,),
        page_tokens=PAGE_TOKENS,
        wants_logits=np.empty(0, np.int32),
        adapters=np.full(rows, -1, np.int32),
        seeds=np.zeros(rows, np.uint64),
        streams=np.zeros(rows, np.uint32),
        keep=np.ones(rows, np.bool_),
    )
