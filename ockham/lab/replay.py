"""Streams of tokens as forced outputs: a model of random weights that says what others wrote.

A checkpoint with random weights has the cost of a real one but repeats itself as no text does, so
drafts would be accepted too easily. Under a `Replay` everything is computed as always, and then
the likeliest token is replaced by the stream's next one. What a drafter gains is then what it would
gain if the model had written the stream by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ockham.core.errors import ConfigError
from ockham.core.step import Floats, Ints, Longs, Step, StepOutput
from ockham.kernels.base import Executor, Run
from ockham.kernels.sampling import Draw, Drawn


class Replay:
    """An executor whose greedy requests with seed `s` follow `streams[s]`, prompt included.

    A stream must be longer than what is asked of it; raises ConfigError where it is not.
    """

    def __init__(self, executor: Executor, streams: Mapping[int, Sequence[int]]) -> None:
        self._executor = executor
        self.streams = streams

    def begin(self, step: Step) -> Run:
        return self._executor.begin(step)

    def run(self, run: Run, start: int, stop: int) -> None:
        self._executor.run(run, start, stop)

    def finish(self, run: Run) -> StepOutput:
        step, output = run.step, self._executor.finish(run)
        output.argmax = [
            self._next(int(step.seeds[row]), int(step.positions[row])) for row in step.wants_argmax
        ]
        return output

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        self._executor.reposition(group, source, target, shifts)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        raise ConfigError("only greedy requests can be replayed.")

    def logprobs(
        self, logits: Floats, targets: Ints, top: int
    ) -> list[dict[int, tuple[float, int]]]:
        return self._executor.logprobs(logits, targets, top)

    def _next(self, stream: int, position: int) -> int:
        tokens = self.streams[stream]
        if position + 1 >= len(tokens):
            raise ConfigError(f"stream {stream} has {len(tokens)} tokens, and more were asked for.")
        return int(tokens[position + 1])
