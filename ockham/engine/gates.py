"""The gates of an engine's sequences, and which rows of a step they leave active."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import msgspec
import numpy as np

from ockham.core.arrays import Ints
from ockham.core.cost import ATTENTION, RUNS_ALL, Skips, Sublayer
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Gate, GatedModel, SequenceGate
from ockham.core.step import ActiveRows
from ockham.engine.messages import Request
from ockham.engine.techniques import Techniques


class OpenGate(msgspec.Struct, frozen=True):
    """The gate of one sequence. `name` is the technique's, under which it is booked."""

    name: str
    of: SequenceGate

    def fork(self) -> OpenGate:
        """That of another sequence, which goes on from this one's state."""
        return OpenGate(self.name, self.of.fork())


class Gates:
    """Opens the gates that apply to requests of a model of so many layers.

    Raises ConfigError if the gate that the engine's setting names does not fit the model.
    """

    def __init__(self, techniques: Techniques, layers: int) -> None:
        self._techniques, self._model = techniques, GatedModel(layers)
        try:
            self.open(Request(request_id="", prompt_token_ids=[], params=SamplingParams()))
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None

    def open(self, request: Request) -> OpenGate | None:
        """The gate of a request's sequence; None if its rows run the whole model. Raises
        InvalidRequest if what is asked does not fit the model, or something else that is asked."""
        chosen = self._techniques.of(request, "gate")
        if chosen is None:
            return None
        gate: Gate = chosen.technique
        found = gate.open(chosen.ask, self._model)
        if found is None:
            return None
        reuse = request.asked("reuse")
        if reuse is not None and any(branch == ATTENTION for _, branch in found.skips):
            raise InvalidRequest(
                f"the gate {shown(chosen.name)} leaves out the attention of some layers, whose "
                f"state reuse {shown(reuse.name)} needs; leave one of the two out.",
                "reuse",
            )
        return OpenGate(chosen.name, found)


def skips_of(gate: OpenGate | None) -> Skips:
    """What the rows of a sequence skip."""
    return RUNS_ALL if gate is None else gate.of.skips


def active_rows(
    skips: Many[Skips], counts: Many[int], sublayers: Mapping[Sublayer, range]
) -> tuple[ActiveRows, ...]:
    """Where some rows of a step do not run, of sequences that skip these sublayers and have so many
    rows each, one after the other. `sublayers` are the program's operations."""
    somewhere = frozenset[Sublayer]().union(*skips)
    rows: dict[tuple[bool, ...], Ints] = {}
    found: list[ActiveRows] = []
    for sublayer, operations in sublayers.items() if somewhere else ():
        if sublayer not in somewhere:
            continue
        runs = tuple(sublayer not in each for each in skips)
        if runs not in rows:
            rows[runs] = np.flatnonzero(np.repeat(runs, counts)).astype(np.int32)
        if found and found[-1].stop == operations.start and found[-1].rows is rows[runs]:
            found[-1].stop = operations.stop
        else:
            found.append(ActiveRows(operations.start, operations.stop, rows[runs]))
    return tuple(found)
