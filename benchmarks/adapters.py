"""What adapters cost in a decoding step: `python -m benchmarks.adapters MODEL`.

MODEL is a checkpoint, such as one that `ockham bench make-checkpoint --shape tinyllama` wrote and
`ockham convert --quantization int4` converted. Each round runs one step in every way, in turn; a
ratio is the median over the rounds. Processor time tells more than the clock where others use the
machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.config import EngineConfig
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AdapterDtype, LowRank, MatrixPart
from ockham.core.step import PackedAdapter, Step
from ockham.engine.batch import build
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.plan import Chunk
from ockham.model.adapting import precision

CONTEXT = 64
QUERIES_AND_VALUES = ("q_proj", "v_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=("int8", "bfloat16", "float32"))
    given = parser.parse_args()
    engine = Engine(
        EngineConfig(
            model=given.model,
            skip_tokenizer_init=True,
            max_model_len=2 * CONTEXT,
            threads=given.threads,
            reuse="none",
            speculative_config="none",
        )
    )
    dtype: AdapterDtype = given.dtype or precision(engine.model.program)
    every = engine.model.program.parts
    some = {name: part for name, part in every.items() if name.endswith(QUERIES_AND_VALUES)}

    def adapters(parts: Sequence[MatrixPart]) -> tuple[PackedAdapter, ...]:
        return tuple(
            engine.executor.pack_adapter(_sums(parts, given.rank, seed), dtype)
            for seed in range(given.rows)
        )

    of_all = adapters(list(every.values()))
    ways: dict[str, tuple[PackedAdapter, ...] | None] = {
        "no adapters": None,
        "all matrices": of_all,
        "queries and values": adapters(list(some.values())),
        "one adapter for all rows": (of_all[0],) * given.rows,
    }
    step = _decoding(engine, given.rows)
    wall: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(given.rounds + 1):
        for way, some_adapters in ways.items():
            step.adapters = some_adapters
            began, held = time.perf_counter(), time.process_time()
            run = engine.executor.begin(step)
            engine.executor.run(run, 0, len(engine.model.program.ops))
            engine.executor.finish(run)
            if number:  # the first round allocates
                processor[way].append(time.process_time() - held)
                wall[way].append(time.perf_counter() - began)
    print(
        f"{given.rows} rows, rank {given.rank}, {dtype}: an adapter has {of_all[0].nbytes:,} bytes"
    )
    for way in ways:
        print(
            f"{way:24} {1e3 * median(wall[way]):7.1f} ms, processor "
            f"{1e3 * median(processor[way]):7.1f} ms, "
            f"{_ratio(processor[way], processor['no adapters']):.2f} times"
        )


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))


def _sums(parts: Sequence[MatrixPart], rank: int, seed: int) -> list[LowRank]:
    rng = np.random.default_rng(seed)

    def factor(*shape: int) -> Floats:
        return (0.01 * rng.standard_normal(shape)).astype(np.float32)

    def one(part: MatrixPart) -> LowRank:
        return LowRank(
            part, rank, 2.0, lambda: (factor(rank, part.inputs), factor(part.outputs, rank))
        )

    return [one(part) for part in parts]


def _decoding(engine: Engine, rows: int) -> Step:
    """The next step of so many sequences that decode."""
    params = SamplingParams(temperature=0.0, max_tokens=CONTEXT // 2, ignore_eos=True)
    for number in range(rows):
        prompt = [(7 * number + i) % engine.vocabulary for i in range(CONTEXT)]
        engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
    running = engine.scheduler.running
    while len(running) < rows or not all(sequence.decoding for sequence in running):
        engine.step()
    for sequence in running:
        assert sequence.view is not None, "a running sequence has a view"
        engine.state.reserve(sequence.view, sequence.computed + 1)
    chunks = [Chunk(sequence, 1) for sequence in running]
    return build(chunks, engine.state, engine.model.program.sublayers()).step


if __name__ == "__main__":
    main()
