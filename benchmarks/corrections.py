"""What a correction costs in a step: `python -m benchmarks.corrections PLAIN CORRECTED`.

Both are directories that `ockham convert` wrote of one model, the second with --correction. Random
weights will do for time:

    ockham bench make-checkpoint --shape tinyllama random
    ockham convert random plain --quantization int4:64
    ockham convert random corrected --quantization int4:64 --correction lorc:rank=32
    python -m benchmarks.corrections plain corrected

Each round runs a decoding step of every number of rows, and a chunk of a prompt, with one and then
with the other; a ratio is the median over the rounds. Processor time tells more than the clock
where others use the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from ockham.core.config import EngineConfig
from ockham.core.step import Step
from ockham.kernels.base import Executor
from ockham.lab.kernels.steps import step_over
from ockham.model.loading import LoadedModel, load_model
from ockham.model.windows import layouts_for

CONTEXT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plain")
    parser.add_argument("corrected")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    models = [
        load_model(EngineConfig(model=model, threads=given.threads))
        for model in (given.plain, given.corrected)
    ]
    plain, corrected = (model.weight_bytes for model in models)
    print(f"weights: {plain:,} bytes, corrected {corrected:,} ({corrected / plain:.3f} times)")
    ways = [(f"{rows} rows that decode", step_over(rows, 1, CONTEXT)) for rows in given.rows]
    ways.append((f"{given.prompt} rows of a prompt", step_over(1, given.prompt, given.prompt)))
    longest = max(CONTEXT, given.prompt)
    executors = [_executor(model, max(given.rows), longest) for model in models]
    for label, step in ways:
        last = np.flatnonzero(np.diff(step.sequence, append=-1)).astype(np.int32)
        step.wants_argmax = last
        wall: list[list[float]] = [[], []]
        processor: list[list[float]] = [[], []]
        for number in range(given.rounds + 1):
            for which, executor in enumerate(executors):
                began, held = time.perf_counter(), time.process_time()
                _run(executor, step, len(models[which].program.ops))
                if number:  # the first round allocates
                    processor[which].append(time.process_time() - held)
                    wall[which].append(time.perf_counter() - began)
        print(
            f"{label:24} {1e3 * median(wall[0]):7.1f} ms, corrected {1e3 * median(wall[1]):7.1f} "
            f"ms, {_ratio(wall):.3f} times (processor {_ratio(processor):.3f} times)"
        )


def _ratio(seconds: Sequence[Sequence[float]]) -> float:
    return float(median(b / a for a, b in zip(*seconds, strict=True)))


def _executor(model: LoadedModel, sequences: int, longest: int) -> Executor:
    layouts = layouts_for(model.description, sequences, longest, model.state_dtype)
    return model.backend.bind(model.program, model.backend.allocate(layouts))


def _run(executor: Executor, step: Step, operations: int) -> None:
    run = executor.begin(step)
    executor.run(run, 0, operations)
    executor.finish(run)


if __name__ == "__main__":
    main()
