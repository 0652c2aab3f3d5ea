"""Steps of a loaded engine, timed beside samples of the machine's limits and predicted from them.

The state of what stands before a step is not computed: its cells are given random keys and values,
so that a step over long contexts costs no prefill of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time

import msgspec
import numpy as np

from ockham.core.cost import Part, StepCost
from ockham.core.errors import InvalidRequest
from ockham.core.rates import Rates, StepSeconds, predict
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.kernels import _cpu
from ockham.lab.kernels.limits import Limits
from ockham.lab.kernels.state import fill
from ockham.model.program.costs import cost_of

SAMPLES = 7
CASE_S = 1.5
"""A case is repeated until it has taken so long, or often enough; twice at least."""
MOST_TRIES = 3
"""Times as many steps are taken, at most, where some were disturbed."""
UNDISTURBED = 0.9
"""Share of a step's time for which its threads must have had their cores."""
BUSY_S = 0.005
"""Of shorter steps too much is bookkeeping, which leaves cores idle by itself."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A step: `rows` rows of each of some sequences, of which `context` cells are there already.
    The last row of each wants logits."""

    sequences: int
    rows: int
    context: int

    @property
    def parts(self) -> list[Part]:
        return [(self.context + 1, self.rows)] * self.sequences


DECODE = tuple(
    Shape(sequences, 1, context) for sequences in (1, 2, 4, 8, 16, 32, 64) for context in (64, 512)
)
LONG = (Shape(1, 1, 1900), Shape(8, 1, 1900), Shape(1, 128, 1800))
PREFILL = tuple(Shape(1, rows, 0) for rows in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024))
MIXED = (Shape(4, 8, 256), Shape(1, 64, 1024), Shape(4, 512, 0))
SHAPES = (*DECODE, *LONG, *PREFILL, *MIXED)
"""1 to 2,048 rows."""


class Prediction(msgspec.Struct, kw_only=True):
    """One shape: medians over its samples. `error` is predicted over measured, less 1: it is above
    0 where the prediction was too long."""

    sequences: int
    rows: int
    context: int
    samples: int
    disturbed: int
    """Steps that were measured again because other programs had the cores meanwhile. Where all of
    them were disturbed, the samples are the least disturbed."""
    measured_s: float
    predicted_s: float
    error: float
    by: dict[str, float]
    """The predicted seconds by what takes them."""
    roofline_s: float
    """The larger of bytes over the rate of reading and FLOPs over the rate of arithmetic."""
    flops: int
    bytes: int
    read_bytes_per_s: float
    flops_per_s: float
    """Of the arithmetic that most weights are multiplied with."""


def fits(engine: Engine, shape: Shape) -> bool:
    """Whether an engine has the room to take such a step."""
    cells = shape.context + shape.rows
    return (
        cells < engine.max_model_len
        and shape.sequences <= engine.config.max_num_seqs
        and shape.sequences * shape.rows <= engine.config.max_num_batched_tokens
        and all(
            shape.sequences * engine.state.pages_for(cells, group, cells) <= layout.pages
            for group, layout in enumerate(engine.state.groups)
        )
    )


def predictions(
    engine: Engine,
    rates: Rates,
    limits: Limits,
    arithmetic: _cpu.Rate,
    shapes: Sequence[Shape] = SHAPES,
    most: int = SAMPLES,
) -> Iterator[Prediction]:
    """Measure and predict each shape, `most` times at most. Every sample is predicted with the
    limits that were probed just before and after it, because they drift.

    Raises InvalidRequest for a shape that the engine has no room for: see `fits`.
    """
    cost = cost_of(engine.model.program, engine.model.layouts)
    for shape in shapes:
        samples: list[_Sample] = []
        tries, taken_s = 0, 0.0
        _timed_step(engine, shape)  # what is allocated at a first step is not timed
        while _more(samples, most, tries, taken_s):
            reads, rate = limits.read_rates(), limits.arithmetic_rates(arithmetic)
            measured_s, held = _timed_step(engine, shape)
            read = median(reads + limits.read_rates())
            flops = max(rate + limits.arithmetic_rates(arithmetic))
            expected = predict(
                cost, rates.at(read, flops), shape.parts, shape.sequences, engine.vocabulary
            )
            held = 1.0 if measured_s < BUSY_S else held / limits.pool.size
            samples.append(_Sample(measured_s, held, expected, read, flops))
            tries += 1
            taken_s += measured_s
        good = [each for each in samples if each.held >= UNDISTURBED]
        kept = good or sorted(samples, key=lambda each: -each.held)[:2]
        yield _prediction(shape, kept, tries - len(good), cost.step(shape.parts, shape.sequences))


@dataclass(frozen=True, slots=True)
class _Sample:
    measured_s: float
    held: float
    """Share of the time for which the threads had their cores."""
    expected: StepSeconds
    read_bytes_per_s: float
    flops_per_s: float


def _more(samples: Sequence[_Sample], most: int, tries: int, taken_s: float) -> bool:
    """Whether another step is to be measured."""
    good = sum(each.held >= UNDISTURBED for each in samples)
    if good >= most or (good >= 2 and taken_s >= CASE_S):
        return False
    return tries < MOST_TRIES * (most if taken_s < CASE_S else 2)


def _prediction(
    shape: Shape, samples: Sequence[_Sample], disturbed: int, cost: StepCost
) -> Prediction:
    read = median(each.read_bytes_per_s for each in samples)
    flops = median(each.flops_per_s for each in samples)
    moved = cost.weight_bytes + cost.state_read_bytes + cost.state_written_bytes
    return Prediction(
        sequences=shape.sequences,
        rows=shape.sequences * shape.rows,
        context=shape.context,
        samples=len(samples),
        disturbed=disturbed,
        measured_s=median(each.measured_s for each in samples),
        predicted_s=median(each.expected.total for each in samples),
        error=median(each.expected.total / each.measured_s for each in samples) - 1,
        by={
            name: median(getattr(each.expected, name) for each in samples)
            for name in StepSeconds.__dataclass_fields__
        },
        roofline_s=max(moved / read, cost.flops / flops),
        flops=cost.flops,
        bytes=moved,
        read_bytes_per_s=read,
        flops_per_s=flops,
    )


def _timed_step(engine: Engine, shape: Shape) -> tuple[float, float]:
    """Seconds of one step of this shape, and seconds of all cores' time in each of them; nothing of
    it is left in the engine."""
    if not fits(engine, shape):
        raise InvalidRequest(
            f"a step of {shape.sequences} sequences with {shape.context} + {shape.rows} tokens "
            "does not fit into this engine; raise max_model_len, max_num_seqs, "
            "max_num_batched_tokens or kv_cache_memory_bytes."
        )
    numbers = random.Random(shape.rows)
    names = [f"step-{index}" for index in range(shape.sequences)]
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    try:
        for name in names:
            tokens = [numbers.randrange(engine.vocabulary)] * (shape.context + shape.rows)
            engine.add(Request(request_id=name, prompt_token_ids=tokens, params=params))
            _stand(engine, shape.context)
        rows = engine.total.rows
        start, cores = perf_counter(), process_time()
        engine.step()
        seconds, cores_s = perf_counter() - start, process_time() - cores
        taken = engine.total.rows - rows
        assert taken == shape.sequences * shape.rows, f"{taken} rows were scheduled for {shape}"
        return seconds, cores_s / seconds
    finally:
        for name in names:
            engine.abort(name)


def _stand(engine: Engine, context: int) -> None:
    """Let the sequence that came last have `context` cells of state."""
    if not context:
        return
    view = engine.state.new_view()
    if not engine.state.reserve(view, context):
        raise InvalidRequest("the pool of state is full.")
    engine.state.advance(view, context)
    for group, layout in enumerate(engine.state.groups):
        (table,) = (engine.state.tables([view])[group],)
        slots = table.slots(
            np.zeros(context, np.int32), np.arange(context, dtype=np.int32), layout.page_tokens
        )
        fill(engine.state.planes, group, layout, slots)
    engine.scheduler.resume(engine.scheduler.waiting.last, view)
