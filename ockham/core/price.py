"""What answers cost before they are written: operations, bytes, seconds, energy.

The cost law of Kinetics (Sadhukhan et al. 2025, arXiv:2506.05333, paper 298) counts the bytes of
keys and values beside the operations, and leaves those of the weights out, which large batches
share. Where few branches run, as on a CPU, weights are most of what is read: here they count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from ockham.core.cost import ModelCost, Part, StepCost
from ockham.core.rates import Rates, predict

PICOJOULES_PER_FLOP = 4.5
"""A multiplication and an addition of 32 bits take 4.6 picojoules (Horowitz, "Computing's Energy
Problem", ISSCC 2014), and a sixteenth of a vector instruction's overhead of 70 another 4.4."""
PICOJOULES_PER_BYTE = 250.0
"""The same source has 1.3 to 2.6 nanojoules for 8 bytes from DRAM."""
_SAMPLES = 16
"""Steps of a decoding that are predicted; those between lie on lines."""


class Work(msgspec.Struct, frozen=True):
    """Answers to be written: `branches` at once after a prompt that they share, of `tokens` tokens
    each. The prompt is read in chunks of `chunk` rows, or is `held` already: then the first token,
    too, takes a row of each."""

    prompt: int
    tokens: int
    branches: int = 1
    chunk: int = 512
    held: bool = False

    def prefill(self) -> Iterator[list[Part]]:
        """The runs of rows of each step that reads the prompt."""
        for start in range(0, 0 if self.held else self.prompt, self.chunk):
            yield [(start + 1, min(self.chunk, self.prompt - start))]

    def decode(self, token: int) -> list[Part]:
        """The runs of rows of the step after which token `token` (from 0) is known. Token 0 comes
        with the prompt."""
        return [(self.prompt + token, 1)] * self.branches

    @property
    def decoded(self) -> range:
        """The tokens that have a step of their own."""
        return range(0 if self.held else 1, self.tokens)


def cost_of_work(cost: ModelCost, work: Work) -> StepCost:
    """The operations and bytes of all steps together, as the ledger books them."""
    reading = [*work.prefill()]
    found = [cost.step(parts, int(parts is reading[-1])) for parts in reading]
    steps, branches = len(work.decoded), work.branches
    if steps:  # at once: a request may ask for the price of very many
        first = work.prompt + work.decoded.start
        found.append(
            StepCost(
                flops=branches * cost.row_flops(first, steps, steps),
                weight_bytes=steps * cost.weight_bytes(branches, branches),
                state_read_bytes=branches * cost.decode_read_bytes(first, steps),
                state_written_bytes=cost.state_written_bytes(steps * branches),
            )
        )
    return _sum(found)


def total_cost(cost: ModelCost, works: Iterable[Work]) -> StepCost:
    """The same of several, one after the other."""
    return _sum([cost_of_work(cost, work) for work in works])


def _sum(costs: Iterable[StepCost]) -> StepCost:
    return StepCost(*map(sum, zip(*map(msgspec.structs.astuple, costs), strict=True)))


def seconds_of_work(cost: ModelCost, rates: Rates, work: Work, vocabulary: int) -> float:
    """The predicted seconds. Raises KeyError if the rates lack a format of the model."""
    seconds = 0.0
    for parts in work.prefill():
        ends = parts[0][0] + parts[0][1] > work.prompt
        seconds += predict(cost, rates, parts, int(ends), vocabulary).total
    steps = np.array(work.decoded)
    if not len(steps):
        return seconds
    places = np.unique(np.linspace(steps[0], steps[-1], _SAMPLES).astype(int)).tolist()
    at = [
        predict(cost, rates, work.decode(place), work.branches, vocabulary).total
        for place in places
    ]
    return seconds + float(np.interp(steps, places, at).sum())


def joules_of(step: StepCost) -> float:
    """The energy of the arithmetic and of the memory, modelled: what a processor takes beside that,
    idle or busy, is not in it."""
    nbytes = step.weight_bytes + step.state_read_bytes + step.state_written_bytes
    return 1e-12 * (step.flops * PICOJOULES_PER_FLOP + nbytes * PICOJOULES_PER_BYTE)
