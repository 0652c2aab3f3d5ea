"""The program whose outputs are most like those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ockham.core.registry import register
from ockham.core.seams import Branch, Problem
from ockham.search.structures.answers import BEHAVIOUR
from ockham.search.structures.behaviour import agreements
from ockham.search.structures.samples import SampleOptions, Samples, SamplesAsk, settled


class ConsensusOptions(SampleOptions, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    `samples` are drawn, `parallel` at once. `calls` are evaluated in the program of each: what they
    return is compared; without calls it is what the program prints. `budget` is the most tokens of
    all samples. `extract` is always "behaviour".
    """

    samples: int = 8
    extract: str = BEHAVIOUR

    def wrong(self) -> str | None:
        """See `SampleOptions`."""
        return super().wrong() or _wrong(self.extract)


class ConsensusAsk(SamplesAsk, kw_only=True, frozen=True):
    """As in `ConsensusOptions`; what is None is as the engine's options have it."""

    asked_as: ClassVar[str] = "consensus"

    def wrong(self) -> str | None:
        """See `SamplesAsk`."""
        return super().wrong() or _wrong(self.extract)


def _wrong(extract: str | None) -> str | None:
    if extract not in (None, BEHAVIOUR):
        return f'extract must be "{BEHAVIOUR}", as programs are compared, got {extract!r}.'
    return None


@register("search", "consensus", exact=False, books=("consensus",))
class Consensus:
    """Of several programs the one whose outputs agree with most others, input by input.

    FunCoder (Chen et al. 2024, arXiv:2405.20092): the similarity of two programs is the share of
    inputs for which both return the same, of those for which one of them returns; the program
    with the largest sum of similarities to the others is chosen. So programs that are wrong in
    different places vote for what they have in common, where a plain vote finds no two alike.
    Programs that are written alike are run once. They all count, in any order: the same seed gives
    the same answer, whatever ran beside it. `ockham techniques measure search/consensus` measures
    it.
    """

    saves: ClassVar[tuple[str, ...]] = ("tokens",)
    name: ClassVar[str] = "consensus"
    Options: ClassVar[type[ConsensusOptions]] = ConsensusOptions
    Ask: ClassVar[type[ConsensusAsk]] = ConsensusAsk

    def __init__(self, options: ConsensusOptions) -> None:
        self._options = options

    def begin(self, ask: ConsensusAsk, problem: Problem) -> Candidates | None:
        """See `Search`."""
        settings = settled(self._options, ask, problem)
        return None if settings is None else Candidates(settings, problem)


class Candidates(Samples):
    """The samples of one request so far."""

    settings: ConsensusOptions

    def decision(self, branches: Mapping[int, Branch]) -> str | None:
        """See `Samples`."""
        return "samples" if len(self.answers) >= self.settings.samples else None

    def ranked(self) -> list[int]:
        """See `Samples`: of those that agree as much the first, and then those without outputs."""
        found = agreements(self.readings.outputs)
        return sorted(self.answers, key=lambda n: (-found.get(n, -1.0), n))

    def told(self) -> dict[str, Any]:
        """See `Samples`."""
        first = next(iter(self.ranked()), None)
        found = agreements(self.readings.outputs)
        others = max(1, len(self.readings.outputs) - 1)
        return {
            "answer": None if first is None else self.answers[first],
            "agreement": round(found[first] / others, 4) if first in found else None,
            "kinds": len(set(self.readings.outputs.values())),
            "without_answer": sum(answer is None for answer in self.answers.values()),
        }
