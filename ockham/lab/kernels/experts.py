"""The grouped products of mixtures of experts, for rows that choose their experts themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.seams import Linear
from ockham.core.step import Step
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.ops import Embed, Experts, Operation, Program, Route
from ockham.kernels.reference.formulas import normalise
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.measure import Case
from ockham.lab.kernels.products import label, rate_of
from ockham.lab.kernels.steps import flat_step, no_state


def expert_cases(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    """The experts of all layers in turn, at each number of rows, which are random embeddings.

    `bytes` counts each expert once that some row chose, and shared ones: the mean of the layers."""
    mixtures = [(op, _router(program, op.layer)) for op in program.ops if isinstance(op, Experts)]
    if not mixtures:
        return
    embed = program.ops[0]
    assert isinstance(embed, Embed), "a program begins with the embedding"
    operations: list[Operation] = [embed]
    for experts, route in mixtures:
        operations += [route, experts]
    backend = CpuBackend(limits.pool.size)
    executor = backend.bind(Program(tuple(operations)), no_state(backend))
    first, top_k = mixtures[0][0], mixtures[0][1].top_k
    for count in rows:
        step = flat_step(count, embed.table.out_features)
        x = embed.table.rows(step.ids)

        def times(calls: int, step: Step = step, x: Floats = x) -> list[float]:
            run = executor.begin(step)
            executor.run(run, 0, 1)
            found = []
            for call in range(max(calls, len(mixtures))):
                place = 1 + 2 * (call % len(mixtures))
                run.x = x
                executor.run(run, place, place + 1)
                start = perf_counter()
                executor.run(run, place + 1, place + 2)
                found.append(perf_counter() - start)
            return found

        chosen = sum(_bytes(experts, route, x) for experts, route in mixtures)
        active = count * top_k * (_operations(first.gate_up[0]) + _operations(first.down[0]))
        yield Case(
            "experts",
            f"{top_k} of {len(first.down)}, {label(first.gate_up[0])}",
            count,
            chosen // len(mixtures),
            active + count * sum(map(_operations, _shared(first))),
            rate_of(first.gate_up[0]),
            times,
        )


def _router(program: Program, layer: int) -> Route:
    return next(op for op in program.ops if isinstance(op, Route) and op.layer == layer)


def _shared(experts: Experts) -> list[Linear]:
    matrices = (experts.shared_gate_up, experts.shared_down, experts.shared_gate)
    return [matrix for matrix in matrices if matrix is not None]


def _bytes(experts: Experts, route: Route, x: Floats) -> int:
    """Of the experts that some of these rows choose, and of shared ones."""
    scores = route.router.matmul(normalise(x, route.norm))
    scores = scores if route.bias is None else scores + route.bias
    chosen = np.unique(np.argsort(-scores, axis=1, kind="stable")[:, : route.top_k])
    own: int = sum(experts.gate_up[e].nbytes + experts.down[e].nbytes for e in chosen)
    return own + sum(matrix.nbytes for matrix in _shared(experts))


def _operations(linear: Linear) -> int:
    return 2 * linear.out_features * linear.in_features
