"""Which pattern of attention each sequence has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ockham.core.arrays import Ints
from ockham.core.choices import Choice
from ockham.core.cost import ATTENTION, RUNS_ALL, Skips
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AttentionGroup, OwnRows, Seen, SequencePattern, Wants
from ockham.core.visits import BLOCK_KEYS, EVERY, BlockVisits
from ockham.engine.messages import Request
from ockham.engine.techniques import Techniques


@dataclass(frozen=True, slots=True)
class OpenPattern:
    """The pattern of one sequence, and the technique that gave it."""

    name: str
    of: SequencePattern
    exact_until: int | None = None
    """The first token whose state nobody else may go on from, because the pattern begins there;
    None if that is said of the whole sequence."""

    def fork(self) -> OpenPattern:
        """That of another sequence, which goes on from this one's state."""
        return OpenPattern(self.name, self.of.fork(), self.exact_until)


class Patterns:
    """Opens the patterns of sequences, on a model with these groups of attention layers.

    Raises ConfigError if the engine's setting does not fit the model.
    """

    def __init__(self, techniques: Techniques, groups: Sequence[AttentionGroup]) -> None:
        self._techniques, self._groups = techniques, tuple(groups)
        try:
            self.open(Request(request_id="", prompt_token_ids=[], params=SamplingParams()))
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None

    def open(self, request: Request, skips: Skips = RUNS_ALL) -> OpenPattern | None:
        """The pattern that applies to a request; None if every block is visited. Of the layers
        whose attention the request's gate `skips` nothing is said. Raises InvalidRequest where what
        it asks does not fit the model."""
        chosen = self._techniques.of(request, "pattern")
        if chosen is None:
            return None
        pattern = chosen.technique.open(chosen.ask, self._groups)
        if pattern is None:
            return None
        idle = [
            [i for i, layer in enumerate(group.layers) if (layer, ATTENTION) in skips]
            for group in self._groups
        ]
        pattern = pattern.for_prompt(len(request.prompt_token_ids))
        opened = _Attending(pattern, idle) if any(idle) else pattern
        whole = len(request.prompt_token_ids)
        until = pattern.exact_until if chosen.alters_prompts else whole
        return OpenPattern(chosen.name, opened, until)


class HeldBlocks(SequencePattern):
    """Every block of keys but the gaps before what a head kept: `gaps` are those of each group,
    (layers, kv_heads) in cells, or None where there are none (`GroupView.gaps`)."""

    def __init__(self, gaps: Sequence[Ints | None]) -> None:
        self._gaps = gaps

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        gaps = self._gaps[group]
        if gaps is None:
            return None
        firsts, of = np.unique(gaps // BLOCK_KEYS, return_inverse=True)
        lists = tuple(np.arange(first, block + 1, dtype=np.int32) for first in firsts.tolist())
        return BlockVisits(lists, of.reshape(gaps.shape).astype(np.int32))


class _Attending(SequencePattern):
    """A pattern, in those layers of each group that attend: in the others nothing is visited, and
    so the pattern leaves nothing out."""

    def __init__(self, pattern: SequencePattern, idle: Sequence[list[int]]) -> None:
        self._pattern, self._idle = pattern, idle
        self.fixed, self.observes = pattern.fixed, pattern.observes  # type: ignore[misc]

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """See `SequencePattern`."""
        found = self._pattern.visits(group, block)
        if found is None or not self._idle[group]:
            return found
        of = found.of.copy()
        of[self._idle[group]] = EVERY
        return BlockVisits(found.lists, of)

    def choice(self, group: int) -> Choice | None:
        """See `SequencePattern`."""
        return self._pattern.choice(group)

    def fork(self) -> SequencePattern:
        """See `SequencePattern`."""
        return _Attending(self._pattern.fork(), self._idle)

    def wants(self, own: OwnRows) -> Wants:
        """See `Observer`."""
        return self._pattern.wants(own)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        """See `Observer`."""
        self._pattern.saw(own, seen)
