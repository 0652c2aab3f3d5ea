"""Streams of tokens as forced outputs: a model of random weights that says what others wrote.

A checkpoint with random weights has the cost of a real one but repeats itself as no text does, so
drafts would be accepted too easily. Under a `Replay` everything is computed as always, and then
the likeliest token is replaced by the stream's next one. What a drafter gains is then what it would
gain if the model had written the stream by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ockham.core.arrays import Doubles, Floats, Ints, Longs
from ockham.core.errors import ConfigError
from ockham.core.seams import AdapterDtype, LowRank
from ockham.core.step import PackedAdapter, Step, StepOutput
from ockham.kernels.base import Executor, Run
from ockham.kernels.sampling import Draw, Drawn


class Replay:
    """An executor whose requests with seed `s` follow `streams[s]`, prompt included.

    A stream must be longer than what is asked of it; raises ConfigError where it is not.
    `likely[s]`, (tokens of the stream, candidates), is what another model found likely after each
    of them; without it, the candidates that a drafter wants to know are none.
    """

    def __init__(
        self,
        executor: Executor,
        streams: Mapping[int, Sequence[int]],
        likely: Mapping[int, Ints] | None = None,
    ) -> None:
        self._executor = executor
        self._likely = likely or {}
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
        if step.candidates:
            output.candidates = self._candidates(step)
        return output

    def pack_adapter(self, sums: Sequence[LowRank], dtype: AdapterDtype) -> PackedAdapter:
        return self._executor.pack_adapter(sums, dtype)

    def reposition(self, group: int, source: Longs, target: Longs, shifts: Ints) -> None:
        self._executor.reposition(group, source, target, shifts)

    def sample(self, logits: Floats, draws: Sequence[Draw]) -> list[Drawn]:
        """Drawn as always, and then replaced."""
        self._executor.sample(logits, draws)
        return [Drawn(self._next(draw.seed, draw.position - 1)) for draw in draws]

    def noise(self, seed: int, stream: int, position: int, tokens: Longs) -> Doubles:
        return self._executor.noise(seed, stream, position, tokens)

    def logprobs(
        self, logits: Floats, targets: Ints, top: int, also: list[int] | None = None
    ) -> list[dict[int, tuple[float, int]]]:
        return self._executor.logprobs(logits, targets, top, also)

    def token_scores(self, logits: Floats, rows: Ints, tokens: Ints, top: int) -> Doubles:
        return self._executor.token_scores(logits, rows, tokens, top)

    def _candidates(self, step: Step) -> Ints:
        """Those that are known of the rows that stand as the stream has it; of the others none."""
        rows = np.concatenate((step.wants_logits, step.wants_argmax)).tolist()
        found: Ints = np.full((len(rows), step.candidates), -1, np.int32)
        for i, row in enumerate(rows):
            stream, position = int(step.seeds[row]), int(step.positions[row])
            if stream in self._likely and step.ids[row] == self.streams[stream][position]:
                found[i] = self._likely[stream][position, : step.candidates]
        return found

    def _next(self, stream: int, position: int) -> int:
        tokens = self.streams[stream]
        if position + 1 >= len(tokens):
            raise ConfigError(f"stream {stream} has {len(tokens)} tokens, and more were asked for.")
        return int(tokens[position + 1])
