"""What `ockham.kernels.ops.recurrent` describes, in NumPy, token by token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ockham.core.arrays import Floats
from ockham.kernels.ops.gated_delta import GatedDelta
from ockham.kernels.ops.state_space import StateSpace
from ockham.kernels.reference.run import ReferenceRun

Prepare = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Queries and keys (key_heads, key_dim) in their final form."""


def recur(
    run: ReferenceRun,
    op: GatedDelta | StateSpace,
    x: Floats,
    rate: Floats,
    decay: Floats,
    prepare: Prepare,
    corrects: bool,
) -> tuple[Floats, Floats]:
    """What the active rows are given, and their values, (rows, V) each; rows of x (C,), rates and
    decays (value_heads,)."""
    active = np.arange(run.step.rows) if run.active is None else run.active
    given: Floats = np.empty((len(active), op.shape.values), np.float32)
    values = np.empty_like(given)
    owners = run.step.sequence[active]
    for owner in np.unique(owners).tolist():
        own = np.flatnonzero(owners == owner)
        sequence = _Sequence(run, op, active[own], owner, prepare, corrects)
        sequence.compute(x[own], rate[own], decay[own], given, values, own)
    return given, values


class _Sequence:
    """The rows of one sequence in a step."""

    def __init__(
        self,
        run: ReferenceRun,
        op: GatedDelta | StateSpace,
        rows: np.ndarray,
        owner: int,
        prepare: Prepare,
        corrects: bool,
    ) -> None:
        self.op, self.shape, self.size = op, op.shape, run.step.page_tokens
        self.prepare, self.corrects = prepare, corrects
        cells, states = run.step.groups[op.cells], run.step.groups[op.states]
        if cells.extra_starts is not None:
            assert not np.diff(cells.extra_starts)[rows].any(), "drafts do not branch"
        self.start = int(cells.context[rows[0]]) - 1
        assert (cells.context[rows] == self.start + 1 + np.arange(len(rows))).all()
        self.kept = run.planes.rows(op.layer, op.cells)
        self.ends = run.planes.rows(op.layer, op.states)[:, 0]
        self.pages, self.end_pages = (
            group.tables.pages[group.tables.starts[owner] : group.tables.starts[owner + 1]]
            for group in (cells, states)
        )

    def compute(
        self,
        x: Floats,
        rate: Floats,
        decay: Floats,
        given: Floats,
        values: Floats,
        own: np.ndarray,
    ) -> None:
        """Fill the rows `own` of `given` and `values`."""
        op, shape, size = self.op, self.shape, self.size
        keys = shape.keys
        chunk = self.start // size
        state = np.zeros((op.value_heads, op.key_dim, op.value_dim), np.float32)
        entered = np.zeros((op.length - 1, shape.channels), np.float32)
        if chunk:
            end = self.ends[self.end_pages[chunk - 1]]
            state = end[: state.size].reshape(state.shape).copy()
            entered = end[state.size :].reshape(entered.shape)
        first = chunk * size
        before = self.kept[self.pages[chunk], : self.start - first] if self.start > first else None
        cuts = np.cumsum([shape.channels, keys, shape.values])
        before = np.zeros((0, 1), np.float32) if before is None else before
        parts = np.split(before, cuts, axis=1) if len(before) else [before[:, :0]] * 4
        history = (
            np.concatenate([entered, parts[0], x]) if len(before) else np.concatenate([entered, x])
        )
        k_list, u_list, sums = ([*part] for part in parts[1:])
        weight = op.weight.reshape(op.length, -1)
        for n, row in enumerate(own.tolist()):
            cell = self.start + n
            place = cell - first + op.length - 1
            mixed = (history[place - op.length + 1 : place + 1] * weight).sum(axis=0)
            mixed = mixed if op.bias is None else mixed + op.bias
            mixed = mixed / (1 + np.exp(-mixed))
            q, k, v = np.split(mixed, [keys, 2 * keys])
            q, k = self.prepare(q.reshape(op.key_heads, -1), k.reshape(op.key_heads, -1))
            values[row] = v
            total = decay[n] + (sums[-1] if len(sums) else 0)
            wide_k, wide_q = self._wide(k), self._wide(q)
            scale = np.exp(total)[:, None]
            read = scale * np.einsum("hd,hdv->hv", wide_k, state)
            out = scale * np.einsum("hd,hdv->hv", wide_q, state)
            for kj, uj, sum_j in zip(k_list, u_list, sums, strict=True):
                wide, factor = self._wide(kj.reshape(k.shape)), np.exp(total - sum_j)
                u_heads = uj.reshape(read.shape)
                read += (factor * (wide_k * wide).sum(axis=1))[:, None] * u_heads
                out += (factor * (wide_q * wide).sum(axis=1))[:, None] * u_heads
            u = v.reshape(read.shape) - (read if self.corrects else 0)
            u = rate[n][:, None] * u
            out += (wide_q * wide_k).sum(axis=1)[:, None] * u
            given[row] = out.reshape(-1)
            k_list.append(k.reshape(-1))
            u_list.append(u.reshape(-1))
            sums.append(total)
            self._keep(cell, np.concatenate([x[n], k_list[-1], u_list[-1], total]))
            if (cell + 1) % size == 0:
                state = scale[..., None] * state
                for kj, uj, sum_j in zip(k_list, u_list, sums, strict=True):
                    wide = self._wide(kj.reshape(k.shape))
                    factor = np.exp(total - sum_j)[:, None, None]
                    state += factor * wide[:, :, None] * uj.reshape(read.shape)[:, None]
                state = state.astype(np.float32)
                tail = history[place - op.length + 2 : place + 1]
                self._keep_end(cell // size, np.concatenate([state.reshape(-1), tail.reshape(-1)]))
                k_list, u_list, sums = [], [], []

    def _wide(self, heads: Floats) -> Floats:
        """The key head that each value head reads."""
        value = np.arange(self.op.value_heads)
        each = self.op.value_heads // self.op.key_heads
        tiled = isinstance(self.op, GatedDelta) and self.op.tiled
        wide: Floats = heads[value % self.op.key_heads if tiled else value // each]
        return wide

    def _keep(self, cell: int, row: Floats) -> None:
        page = int(self.pages[cell // self.size])
        if page >= 0:
            self.kept[page, cell % self.size] = row

    def _keep_end(self, chunk: int, row: Floats) -> None:
        page = int(self.end_pages[chunk])
        if page >= 0:
            self.ends[page] = row
