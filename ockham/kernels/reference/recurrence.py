"""What `ockham.kernels.ops.recurrent` describes, in NumPy, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.kernels.ops.gated_delta import GatedDelta
from ockham.kernels.ops.linear_attention import LinearAttention
from ockham.kernels.ops.state_space import StateSpace
from ockham.kernels.reference.run import ReferenceRun

Prepare = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Queries and keys (key_heads, key_dim) in their final form."""


def recur(
    run: ReferenceRun,
    op: GatedDelta | StateSpace | LinearAttention,
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


class _Token(NamedTuple):
    """What is kept of a token: what entered the convolution, its keys, its updates, and the sum of
    its chunk's decays, of each head."""

    x: Floats
    k: Floats
    u: Floats
    total: Floats


class _Sequence:
    """The rows of one sequence in a step."""

    def __init__(
        self,
        run: ReferenceRun,
        op: GatedDelta | StateSpace | LinearAttention,
        rows: np.ndarray,
        owner: int,
        prepare: Prepare,
        corrects: bool,
    ) -> None:
        self.op, self.shape, self.size = op, op.shape, run.step.page_tokens
        self.prepare, self.corrects = prepare, corrects
        cells, states = run.step.groups[op.cells], run.step.groups[op.states]
        self.rows, self.own = rows, cells
        self.start = int(cells.cells[rows[0]])
        assert (cells.cells[rows] == self.start + np.arange(len(rows))).all()
        self.kept = run.planes.rows(op.layer, op.cells)
        self.ends = run.planes.rows(op.layer, op.states)[:, 0]
        self.pages, self.end_pages = (
            group.tables.pages[group.tables.starts[owner] : group.tables.starts[owner + 1]]
            for group in (cells, states)
        )
        self.made: list[_Token] = []
        self.begun = self.start // self.size
        self.entered = np.zeros((max(op.shape.length - 1, 0), op.shape.channels), np.float32)
        """What entered the convolution before the step's first chunk."""
        shape = op.shape.value_heads, op.shape.key_dim, op.shape.value_dim
        self.states = {self.begun: np.zeros(shape, np.float32)}
        """By chunk, the state at its start."""
        if self.begun:
            end = self.ends[self.end_pages[self.begun - 1]]
            state = self.states[self.begun]
            self.states[self.begun] = end[: state.size].reshape(state.shape)
            self.entered = end[state.size :].reshape(self.entered.shape)

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
        keys, heads = self.shape.keys, self.shape.key_heads
        for n, row in enumerate(own.tolist()):
            seen = self._seen(int(self.rows[n]))
            place = len(seen) - 1
            start = place // self.size * self.size
            length = self.shape.length
            history = [self._entered(seen, at) for at in range(place - length + 1, place)]
            mixed = self._mixed(history, x[n])
            q, k, v = np.split(mixed, [keys, 2 * keys])
            q, k = self.prepare(q.reshape(heads, -1), k.reshape(heads, -1))
            values[row] = v
            before = [self._token(seen[at]) for at in range(start, place)]
            total = decay[n] + (before[-1].total if before else 0)
            wide_k, wide_q, state = self._wide(k), self._wide(q), self.states[place // self.size]
            scale = np.exp(total)[:, None]
            read = scale * np.einsum("hd,hdv->hv", wide_k, state)
            out = scale * np.einsum("hd,hdv->hv", wide_q, state)
            for each in before:
                wide, factor = self._wide(each.k.reshape(k.shape)), np.exp(total - each.total)
                u_heads = each.u.reshape(read.shape)
                read += (factor * (wide_k * wide).sum(axis=1))[:, None] * u_heads
                out += (factor * (wide_q * wide).sum(axis=1))[:, None] * u_heads
            u = v.reshape(read.shape) - (read if self.corrects else 0)
            u = rate[n][:, None] * u
            out += (wide_q * wide_k).sum(axis=1)[:, None] * u
            given[row] = out.reshape(-1)
            self.made.append(
                _Token(x[n][: self.shape.entered], k.reshape(-1), u.reshape(-1), total)
            )
            self._keep(self.start + n, np.concatenate(self.made[-1]))
            if (place + 1) % self.size == 0:
                assert seen[place] == place, "no branch ends a chunk"
                state = scale[..., None] * state
                for each in [*before, self.made[-1]]:
                    wide = self._wide(each.k.reshape(k.shape))
                    factor = np.exp(total - each.total)[:, None, None]
                    state += factor * wide[:, :, None] * each.u.reshape(read.shape)[:, None]
                self.states[place // self.size + 1] = state = state.astype(np.float32)
                tail = np.stack([*history, x[n]])[1:]  # nothing without a convolution
                self._keep_end(
                    place // self.size, np.concatenate([state.reshape(-1), tail.reshape(-1)])
                )

    def _mixed(self, history: list[Floats], x: Floats) -> Floats:
        """A row after the convolution, if there is one."""
        if isinstance(self.op, LinearAttention):
            return x
        weight = self.op.weight.reshape(self.op.length, -1)
        mixed: Floats = (np.stack([*history, x]) * weight).sum(axis=0)
        mixed = mixed if self.op.bias is None else mixed + self.op.bias
        activated: Floats = mixed / (1 + np.exp(-mixed))
        return activated

    def _seen(self, row: int) -> Ints:
        """The cells of the tokens up to a row's own, by their places."""
        before: Ints = np.arange(self.own.context[row], dtype=np.int32)
        if self.own.extra is None or self.own.extra_starts is None:
            return before
        starts = self.own.extra_starts[row : row + 2]
        return np.concatenate([before, self.own.extra[slice(*starts.tolist())]])

    def _token(self, cell: int) -> _Token:
        """What is kept of a token of a chunk that the step computes."""
        if cell >= self.start:
            return self.made[cell - self.start]
        shape = self.shape
        kept = self.kept[self.pages[cell // self.size], cell % self.size]
        cuts = np.cumsum([shape.entered, shape.keys, shape.values])
        return _Token(*np.split(kept, cuts))

    def _entered(self, seen: Ints, place: int) -> Floats:
        """What entered the convolution in a place before a row's own; zeros before the text."""
        first = self.begun * self.size
        if place >= first:
            return self._token(int(seen[place])).x
        entered: Floats = self.entered[place - first]
        return entered

    def _wide(self, heads: Floats) -> Floats:
        """The key head that each value head reads."""
        value = np.arange(self.shape.value_heads)
        each = self.shape.value_heads // self.shape.key_heads
        tiled = isinstance(self.op, GatedDelta) and self.op.tiled
        wide: Floats = heads[value % self.shape.key_heads if tiled else value // each]
        return wide

    def _keep(self, cell: int, row: Floats) -> None:
        page = int(self.pages[cell // self.size])
        if page >= 0:
            self.kept[page, cell % self.size] = row

    def _keep_end(self, chunk: int, row: Floats) -> None:
        page = int(self.end_pages[chunk])
        if page >= 0:
            self.ends[page] = row
