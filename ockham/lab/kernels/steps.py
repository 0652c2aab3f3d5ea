"""Steps made by hand, and memory for their state."""

from __future__ import annotations

import numpy as np

from ockham.core.rows import build_step, chains
from ockham.core.step import Step, Tables
from ockham.kernels.cpu import CpuBackend, CpuPlanes
from ockham.kernels.layout import GroupLayout, StateSpec

PAGE_TOKENS = 16


def no_state(backend: CpuBackend) -> CpuPlanes:
    """Planes for programs that have no attention."""
    return backend.allocate(
        [GroupLayout((0,), StateSpec.attention(1, 16, "float32"), 1, PAGE_TOKENS)]
    )


def flat_step(rows: int, vocabulary: int) -> Step:
    """`rows` random tokens of one sequence, for programs that have no attention."""
    ids = np.random.default_rng(0).integers(0, vocabulary, rows).astype(np.int32)
    pages = -(-rows // PAGE_TOKENS)
    table = Tables(np.zeros(pages, np.int32), np.array([0, pages], np.int32))
    cells = np.arange(rows, dtype=np.int32)
    owner, slots = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
    return build_step(ids, cells, owner, (table,), PAGE_TOKENS, slots=(slots,))


def step_over(sequences: int, rows: int, keys: int) -> Step:
    """The last `rows` rows of each of so many sequences of `keys` cells, over shuffled pages."""
    pages = -(-keys // PAGE_TOKENS)
    order = np.random.default_rng(0).permutation(sequences * pages).astype(np.int32)
    table = Tables(order, np.arange(sequences + 1, dtype=np.int32) * pages)
    last = chains(np.full(sequences, keys - rows, np.int32), np.full(sequences, rows, np.int32))
    ids = np.zeros(sequences * rows, np.int32)
    return build_step(ids, last.places, last.owner, (table,), PAGE_TOKENS)
