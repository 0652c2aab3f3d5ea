"""A backend that computes nothing: it says how long a step would take, and what a recorded text
says next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.cost import ModelCost
from ockham.core.errors import ConfigError
from ockham.core.rates import Rates
from ockham.core.seams import AdapterDtype, Layout, Linear, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.kernels import sampling
from ockham.kernels.base import Backend, GroupLayout, Planes, Run
from ockham.kernels.ops import FeedForward, Program
from ockham.kernels.sampling import Draw, Drawn
from ockham.model.program.costs import cost_of
from ockham.plan.clock import VirtualClock
from ockham.plan.step_seconds import StepPredictor, foretold

Streams = Mapping[int, Sequence[int]]
"""By the seed of a request, the tokens of its prompt and of its answer."""


class NoPlanes:
    """State that takes no memory: whatever is read of it is 0. `moved` is told of bytes that would
    be read and written."""

    layout = "none"

    def __init__(self, groups: Sequence[GroupLayout], moved: Callable[[float], None]) -> None:
        self.groups = tuple(groups)
        self._moved = moved

    def copy(
        self,
        group: int,
        source: Longs,
        target: Longs,
        head: int | None = None,
        index: int | None = None,
    ) -> None:
        layout = self.groups[group]
        share = 1.0 if head is None else 1 / layout.spec.uniform.heads
        share /= 1 if index is None else len(layout.layers)
        self._moved(2 * len(source) * layout.cell_bytes * share)

    def read(self, group: int, slots: Longs) -> npt.NDArray[np.generic]:
        layout = self.groups[group]
        return np.zeros(layout.stored_shape(len(slots)), layout.spec.uniform.stored)

    def write(self, group: int, slots: Longs, state: npt.NDArray[np.generic]) -> None:
        return

    def stored_page_bytes(self, group: int) -> int:
        return self.groups[group].page_bytes

    def read_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        return

    def write_pages(self, group: int, pages: Longs, data: npt.NDArray[np.uint8], at: int) -> None:
        return

    def read_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        return

    def write_part(self, group: int, page: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        return

    def alike(self, group: int, slots: Longs) -> Ints:
        layout = self.groups[group]
        order = np.arange(len(slots), dtype=np.int32)
        shape = (len(layout.layers), layout.spec.uniform.heads, len(slots))
        return np.broadcast_to(order, shape).copy()

    def back(self, group: int, index: int, pages: int) -> None:
        return


class PredictedRun:
    """A step under way of which nothing is computed."""

    def __init__(self, step: Step, x: Floats) -> None:
        self.step, self.x = step, x


class PredictedExecutor:
    """Says what `streams` say, and moves `clock` on by the predicted seconds.

    Logits, hidden states and attention are never those of the model: whoever decides by them
    decides something else than it would. Each step's seconds are added up in `seconds`.
    """

    def __init__(
        self,
        program: Program,
        groups: Sequence[GroupLayout],
        rates: Rates,
        clock: VirtualClock,
        streams: Streams,
    ) -> None:
        self.cost: ModelCost = cost_of(program, groups)
        self.seconds = 0.0
        self._rates, self._clock, self._streams = rates, clock, streams
        neurons = {n: op.neurons for n, op in enumerate(program.ops) if isinstance(op, FeedForward)}
        self._predictor = StepPredictor(self.cost, rates, neurons)
        self._layers = [group.layers for group in groups]
        self._widths = [g.heads * g.head_dim for g in self.cost.groups]
        self._hidden = program.matrices()["embedding"].in_features
        self._vocabulary = program.matrices()["head"].out_features
        self._nothing: Floats = np.zeros((1, self._vocabulary), np.float32)

    def begin(self, step: Step) -> Run:
        return PredictedRun(step, np.zeros((0, 0), np.float32))

    def run(self, run: Run, start: int, stop: int) -> None:
        return

    def finish(self, run: Run) -> StepOutput:
        self._clock()
        step = run.step
        left_out = foretold(step, self.cost)
        self._take(self._predictor.seconds(step, left_out))
        self._clock.owe(self._rates.step_s + step.sequences * self._rates.sequence_s)
        output = self._answer(step, left_out)
        self._clock.resume()
        return output

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        raise ConfigError("requests with adapters cannot be simulated; leave the adapter out.")

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        """Each cell is read and written once."""
        nbytes = 2 * len(source) * self.cost.groups[group].kept_bytes
        self._take(nbytes / self._rates.read_bytes_per_s)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        self._clock()
        greedy = sum(draw.plain_greedy for draw in draws)
        per_logit_s = self._rates.logit_s * greedy + self._rates.drawn_s * (len(draws) - greedy)
        self._take(per_logit_s * self._vocabulary)
        found = [Drawn(self._drawn(draw)) for draw in draws]
        self._clock.resume()
        return found

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return np.zeros(len(tokens))

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        return sampling.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        return np.zeros((len(rows), 3))

    # -- inside --------------------------------------------------------------------------------

    def _take(self, seconds: float) -> None:
        self.seconds += seconds
        self._clock.add(seconds)

    def _next(self, seed: int, position: int) -> int:
        """What a stream says at a position; beyond its end it repeats its last token."""
        tokens = self._streams.get(seed)
        if tokens is None:
            return 0
        return int(tokens[min(position, len(tokens) - 1)])

    def _drawn(self, draw: Draw) -> int | None:
        """What the stream says, or else the first token that may come."""
        token = self._next(draw.seed, draw.position)
        if draw.mask is None:
            return token
        if draw.mask[token // 32] >> np.uint32(token % 32) & 1:
            return token
        words = np.flatnonzero(draw.mask)
        if not len(words):
            return None
        word = int(draw.mask[words[0]])
        return int(words[0]) * 32 + (word & -word).bit_length() - 1

    def _answer(self, step: Step, left_out: dict[int, Longs]) -> StepOutput:
        argmax = step.wants_argmax
        seeds, positions = step.seeds[argmax].tolist(), step.positions[argmax].tolist()
        output = StepOutput(
            np.broadcast_to(self._nothing, (len(step.wants_logits), self._vocabulary)),
            argmax=[self._next(s, p + 1) for s, p in zip(seeds, positions, strict=True)],
            largest=np.zeros(len(argmax), np.float32),
            left_out=left_out,
        )
        if step.candidates:
            rows = len(step.wants_logits) + len(argmax)
            output.candidates = np.full((rows, step.candidates), -1, np.int32)
        self._attended(step, output)
        return output

    def _attended(self, step: Step, output: StepOutput) -> None:
        """What observers of attention want: it is the same for every key."""
        group_of = {layer: n for n, layers in enumerate(self._layers) for layer in layers}

        def even(layer: int, rows: Ints) -> Floats:
            """The sum over rows, with the keys of the last."""
            group = group_of[layer]
            keys = int(step.groups[group].keys_seen[rows].max())
            return np.full((self.cost.groups[group].kv_heads, keys), len(rows) / keys, np.float32)

        for layer, rows in step.wants_scores.items():
            output.scores[layer] = [even(layer, rows[i : i + 1]) for i in range(len(rows))]
        for layer, rows in step.wants_score_sums.items():
            output.score_sums[layer] = [even(layer, rows[i : i + 1])[0] for i in range(len(rows))]
        for layer, sets in step.wants_score_totals.items():
            output.score_totals[layer] = [even(layer, rows).astype(np.float64) for rows in sets]
        for layer, rows in step.wants_hidden.items():
            output.hidden[layer] = np.zeros((len(rows), self._hidden), np.float32)
        for layer, rows in step.wants_queries.items():
            shape = (len(rows), self._widths[group_of[layer]])
            output.queries[layer] = np.zeros(shape, np.float32)
        if len(step.wants_recall):
            for number, layers in enumerate(self._layers):
                if step.groups[number].visits is not None or number in output.left_out:
                    shape = (len(step.wants_recall), self.cost.groups[number].kv_heads)
                    output.recall |= {layer: np.ones(shape, np.float32) for layer in layers}


class PredictedBackend:
    """A backend in place of another, of whose seconds it knows."""

    def __init__(
        self, backend: Backend, rates: Rates, clock: VirtualClock, streams: Streams
    ) -> None:
        self.name, self.layout = backend.name, backend.layout
        self._backend = backend
        self._rates, self._clock, self._streams = rates, clock, streams

    name: str
    layout: Layout

    def numerics(self, formats: Collection[str] = ()) -> str:
        return f"predicted-{self._backend.numerics(formats)}"

    def multiply(self, linear: Linear, x: Floats) -> Floats:
        raise ConfigError("a simulation multiplies nothing; leave out drafters that do.")

    def allocate(self, groups: Sequence[GroupLayout]) -> Planes:
        def moved(nbytes: float) -> None:
            self._clock.add(nbytes / self._rates.read_bytes_per_s)

        return NoPlanes(groups, moved)

    def bind(self, program: Program, planes: Planes) -> PredictedExecutor:
        assert isinstance(planes, NoPlanes), "they were allocated here"
        return PredictedExecutor(program, planes.groups, self._rates, self._clock, self._streams)
