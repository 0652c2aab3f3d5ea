"""The output head with what follows it: the greedy token of each row, in two ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from time import perf_counter

import numpy as np

from ockham.core.sampling_params import SamplingParams
from ockham.core.step import NO_ROWS, Step
from ockham.kernels.cpu import CpuBackend, CpuExecutor
from ockham.kernels.ops import Embed, Head, Program
from ockham.kernels.sampling import Draw
from ockham.lab.kernels.limits import COLD_BYTES, Limits
from ockham.lab.kernels.measure import Case
from ockham.lab.kernels.products import label, rate_of
from ockham.lab.kernels.steps import flat_step, no_state

_GREEDY = SamplingParams(temperature=0.0)


def head_cases(program: Program, limits: Limits, rows: Sequence[int]) -> Iterator[Case]:
    """The head from hidden states to tokens: with logits in memory that the sampler reads, and
    with the argmax found tile by tile. Norm and input preparation count too."""
    embed, head = program.ops[0], program.ops[-1]
    if not isinstance(embed, Embed) or not isinstance(head, Head):
        return
    backend = CpuBackend(limits.pool.size)
    executor = backend.bind(Program((embed, head)), no_state(backend))
    other_memory = np.zeros(COLD_BYTES // 8)
    out = head.out
    for count in rows:
        every = np.arange(count, dtype=np.int32)
        for kernel, logits, argmax in (
            ("head, then sampler", every, NO_ROWS),
            ("head, argmax", NO_ROWS, every),
        ):
            step = flat_step(count, embed.table.out_features)
            step.wants_logits, step.wants_argmax = logits, argmax
            written = 8 * len(logits) * out.out_features  # and read again
            yield Case(
                kernel,
                label(out),
                count,
                out.nbytes + 4 * count * out.in_features + written,
                2 * count * out.in_features * out.out_features,
                rate_of(out),
                partial(_times, executor, step, other_memory),
            )


def _times(executor: CpuExecutor, step: Step, other_memory: np.ndarray, calls: int) -> list[float]:
    draws = [Draw(row, _GREEDY, 0, 0, 0) for row in range(len(step.wants_logits))]
    found = []
    for _ in range(calls):
        run = executor.begin(step)
        executor.run(run, 0, 1)
        other_memory.sum()  # leaves nothing of the weights in the caches
        start = perf_counter()
        executor.run(run, 1, 2)
        output = executor.finish(run)
        if draws:
            executor.sample(output.logits, draws)
        found.append(perf_counter() - start)
    return found
