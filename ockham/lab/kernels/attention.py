"""Attention at a model's shapes, in decode and in prefill, over keys that no cache holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from ockham.core.cost import keys_seen
from ockham.core.seams import Linear
from ockham.kernels.cpu import CpuBackend, CpuExecutor
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.native import core
from ockham.kernels.ops import Attend, AttentionInput, Embed, Operation, Program
from ockham.lab.kernels.limits import COLD_BYTES, Limits
from ockham.lab.kernels.measure import Case
from ockham.lab.kernels.state import fill
from ockham.lab.kernels.steps import PAGE_TOKENS, step_over
from ockham.model.packed.packing import plain_format

HIDDEN = 64
"""Width of the residual stream that feeds the queries: narrow, as only attention is timed."""

MOST_BYTES = 1 << 30
"""Of keys and values: what is larger is left out."""

MOST_LAYERS = 512
"""Of few keys no more copies are made, even if caches hold them all."""

Shape = tuple[int, int, int, float, float | None, int | None]
"""Query heads, key-value heads, size of a head, scale, softcap, window."""


def attention_cases(
    program: Program,
    state_dtype: str,
    limits: Limits,
    rows: Sequence[int],
    contexts: Sequence[int],
    left_out: list[str],
) -> Iterator[Case]:
    """Each distinct attention: `rows` sequences that decode one row each, and the last `rows` rows
    of one prompt. What would take too much memory is left out, and named in `left_out`."""
    shapes: dict[Shape, None] = {}
    for op in program.ops:
        if isinstance(op, Attend):
            of = (op.heads, op.kv_heads, op.head_dim, op.scale, op.softcap, op.window)
            shapes[of] = None
    for shape in shapes:
        for keys in contexts:
            for count in rows:
                case = attention_case(shape, state_dtype, limits, count, 1, keys)
                if case is None:
                    left_out.append(f"decode of {count} rows with {keys} keys each")
                else:
                    yield case
            for count in (n for n in sorted({*rows, keys}) if 1 < n <= keys):
                case = attention_case(shape, state_dtype, limits, 1, count, keys)
                if case is not None:
                    yield case


def attention_case(
    shape: Shape,
    state_dtype: str,
    limits: Limits,
    sequences: int,
    rows: int,
    keys: int,
    *,
    spread_bytes: int | None = None,
) -> Case | None:
    """`rows` rows of each of some sequences of `keys` keys; None if they take too much memory. A
    single row is timed in layer after layer, whose keys and values take `spread_bytes` together: by
    default more than caches hold."""
    heads, kv_heads, head_dim, _, _, window = shape
    cell_bytes = StateSpec.attention(kv_heads, head_dim, state_dtype).nbytes
    held = sequences * keys * cell_bytes
    spread_bytes = COLD_BYTES if spread_bytes is None else spread_bytes
    layers = min(MOST_LAYERS, max(1, -(-spread_bytes // held))) if rows == 1 else 1
    if layers * held > MOST_BYTES:
        return None
    timing = _Timing(shape, state_dtype, limits, layers, sequences, rows, keys)
    read = keys if window is None else min(keys, window + rows - 1)
    activations = 2 * 4 * heads * head_dim * rows
    seen = keys_seen(keys - rows + 1, rows, window)
    sliding = "" if window is None else f", window {window}"
    return Case(
        "attention, decode" if rows == 1 else "attention, prefill",
        f"{heads} over {kv_heads} of {head_dim}, {state_dtype}{sliding}",
        sequences * rows,
        sequences * (read * cell_bytes + activations),
        4 * heads * head_dim * sequences * seen,
        # An instruction takes as many pairs of codes, widened to 16 bits, as it takes of bf16.
        core.Rate.FP32 if state_dtype == "float32" else core.Rate.BF16,
        timing.times,
        keys,
    )


class _Timing:
    """Layers of nothing but attention, taken in turn, over random keys and values."""

    def __init__(
        self,
        shape: Shape,
        state_dtype: str,
        limits: Limits,
        layers: int,
        sequences: int,
        rows: int,
        keys: int,
    ) -> None:
        _, kv_heads, head_dim, _, _, window = shape
        self._layers = layers
        self._step = step_over(sequences, rows, keys)
        pages = len(self._step.groups[0].tables.pages)
        spec = StateSpec.attention(kv_heads, head_dim, state_dtype, window)
        layout = GroupLayout(tuple(range(layers)), spec, pages, PAGE_TOKENS)
        self._backend, self._layout = CpuBackend(limits.pool.size), layout
        self._shape = shape
        self._executor: CpuExecutor | None = None
        self._next = 0

    def times(self, calls: int) -> list[float]:
        if self._executor is None:  # only now: of all cases, one at a time takes memory
            planes = self._backend.allocate([self._layout])
            fill(planes, 0, self._layout, np.arange(self._layout.pages * PAGE_TOKENS))
            self._executor = self._backend.bind(
                attention_program(self._layers, self._shape), planes
            )
        executor = self._executor
        run = executor.begin(self._step)
        executor.run(run, 0, 2)
        times = []
        for _ in range(calls):
            place = 2 + 2 * (self._next % self._layers)
            self._next += 1
            start = perf_counter()
            executor.run(run, place, place + 1)
            times.append(perf_counter() - start)
        return times


def attention_program(layers: int, shape: Shape) -> Program:
    """Layers of nothing but attention: the layer l's is operation 2 + 2 * l."""
    heads, kv_heads, head_dim, scale, softcap, window = shape
    qkv = _random((heads + 2 * kv_heads) * head_dim)
    operations: list[Operation] = [Embed(_random(16))]
    for layer in range(layers):
        of = (layer, 0, heads, kv_heads, head_dim)
        operations.append(AttentionInput(*of, qkv=qkv))
        operations.append(Attend(*of, scale=scale, softcap=softcap, window=window))
    return Program(tuple(operations))


def _random(outputs: int) -> Linear:
    rows = np.random.default_rng(0).standard_normal((outputs, HIDDEN), np.float32) * 0.02
    return plain_format("bfloat16").pack(outputs, HIDDEN, [rows])
