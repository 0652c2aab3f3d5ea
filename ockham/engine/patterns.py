"""Which pattern of attention each sequence has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import AttentionGroup, SequencePattern
from ockham.engine.messages import Request
from ockham.engine.techniques import Techniques


@dataclass(frozen=True, slots=True)
class OpenPattern:
    """The pattern of one sequence, and the technique that gave it."""

    name: str
    of: SequencePattern

    def fork(self) -> OpenPattern:
        """That of another sequence, which goes on from this one's state."""
        return OpenPattern(self.name, self.of.fork())


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

    def open(self, request: Request) -> OpenPattern | None:
        """The pattern that applies to a request; None if every block is visited. Raises
        InvalidRequest where what it asks does not fit the model."""
        chosen = self._techniques.of(request, "pattern")
        if chosen is None:
            return None
        pattern = chosen.technique.open(chosen.ask, self._groups)
        return None if pattern is None else OpenPattern(chosen.name, pattern)
