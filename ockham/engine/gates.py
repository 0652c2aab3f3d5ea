"""The gates of an engine's sequences, and which rows of a step they leave active."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import msgspec
import numpy as np

from ockham.core.arrays import Doubles, Ints
from ockham.core.cost import ATTENTION, FEED_FORWARD, RUNS_ALL, Skips, Sublayer
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import Gate, GatedModel, SequenceGate, Stretch
from ockham.core.sparing import RoutingRule, Rule, Sparing
from ockham.core.step import ActiveRows
from ockham.engine.messages import Request
from ockham.engine.techniques import Techniques

Run = tuple[Skips, int]
"""Neighbouring rows that skip the same: what, and how many they are."""


class OpenGate(msgspec.Struct, frozen=True):
    """The gate of one sequence. `name` is the technique's, under which it is booked."""

    name: str
    of: SequenceGate
    exact_until: int | None = None
    """The first token whose state depends on the gate; None where the key of the state says it."""
    changes: bool = False
    """Whether rows of some places skip other sublayers than those of others."""
    narrows: bool = False
    """Whether that is so of attentions."""

    def fork(self) -> OpenGate:
        """That of another sequence, which goes on from this one's state."""
        return msgspec.structs.replace(self, of=self.of.fork())

    def runs(self, places: Ints) -> list[Run]:
        """What rows in these places skip, neighbours that skip the same together."""
        if not self.changes:
            return [(self.of.skips, len(places))]
        found: list[Run] = []
        first, stretch = 0, Stretch(RUNS_ALL, 0)
        for place in places.tolist():
            if place < first or (stretch.until is not None and place >= stretch.until):
                first, stretch = place, self.of.at(place)
            if found and found[-1][0] == stretch.skips:
                found[-1] = (stretch.skips, found[-1][1] + 1)
            else:
                found.append((stretch.skips, 1))
        return found


class Gates:
    """Opens the gates that apply to requests of a model.

    Raises ConfigError if the gate that the engine's setting names does not fit the model.
    """

    def __init__(self, techniques: Techniques, model: GatedModel) -> None:
        self._techniques, self.model = techniques, model
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
        found = gate.open(chosen.ask, self.model)
        if found is None:
            return None
        prompt_tokens = len(request.prompt_token_ids)
        found = found.for_prompt(prompt_tokens)
        if self.model.passes > 1 and (found.deeper is None or found.skips or found.spares):
            raise InvalidRequest(
                f"the gate {shown(chosen.name)} leaves out parts of layers, which is not supported "
                "of a model that runs layers several times; leave it out.",
                chosen.name,
            )
        changes, narrows, skipped = _check_order(chosen.name, found)
        read = {layer for layer, _ in skipped} & self.model.read_by_others
        if read:
            raise InvalidRequest(
                f"the gate {shown(chosen.name)} leaves out the attention of layer {min(read)}, "
                "whose keys and values other layers read; leave out others.",
                chosen.name,
            )
        reuse = request.asked("reuse")
        if reuse is not None and any(branch == ATTENTION for _, branch in found.skips):
            raise InvalidRequest(
                f"the gate {shown(chosen.name)} leaves out the attention of some layers, whose "
                f"state reuse {shown(reuse.name)} needs; leave one of the two out.",
                "reuse",
            )
        until = None if chosen.alters_prompts else prompt_tokens
        return OpenGate(chosen.name, found, until, changes, narrows)


def _check_order(name: str, gate: SequenceGate) -> tuple[bool, bool, Skips]:
    """Whether what rows skip depends on their place, and whether attentions do, and the attentions
    that some row skips. Raises ValueError,
    since its author is wrong, if some row would look for keys that an earlier one did not
    write."""
    place, skipped, changes = 0, _attentions(gate.skips), False
    while True:
        stretch = gate.at(place)
        attention = _attentions(stretch.skips)
        if not skipped <= attention:
            raise ValueError(
                f"the gate {name!r} runs the attention of layer {min(skipped - attention)[0]} at "
                f"place {place}, but earlier rows have no keys there; let later rows skip it too."
            )
        changes = changes or stretch.skips != gate.skips
        if stretch.until is None:
            return changes, attention != _attentions(gate.skips), attention
        if stretch.until <= place:
            raise ValueError(
                f"the gate {name!r} says at place {place} that the next change is at "
                f"{stretch.until}; name a later place, or None."
            )
        place, skipped = stretch.until, attention


def sparing_of(
    gates: Many[tuple[OpenGate | None, Ints]], sublayers: Mapping[Sublayer, range]
) -> Sparing | None:
    """By which rules the rows of a step decide: of each sequence its gate, and the places of its
    rows. None if no row decides."""
    rules = [None if gate is None else gate.of.spares for gate, _ in gates]
    if all(rule is None for rule in rules):
        return None
    found: list[Rule] = []
    of_rows: list[Ints] = []
    known: dict[tuple[int, ...], int] = {}
    for rule, (_, places) in zip(rules, gates, strict=True):
        own = np.full(len(places), -1, np.int32)
        if rule is not None:
            key: tuple[int, ...] = (id(rule),)
            if isinstance(rule, RoutingRule):  # of which requests that ask the same share arrays
                key = (id(rule.widths), id(rule.weights), id(rule.biases))
            own[places >= rule.place] = known.setdefault(key, len(known))
            if len(known) > len(found):
                found.append(rule)
        of_rows.append(own)
    layers = range(1 + max((layer for layer, _ in sublayers), default=-1))
    operations = [sublayers.get((layer, FEED_FORWARD), range(0)) for layer in layers]
    return Sparing.of(
        np.concatenate(of_rows),
        found,
        np.array([each.start for each in operations], np.int32),
        np.array([each.stop for each in operations], np.int32),
    )


def deeper_of(gates: Many[tuple[OpenGate | None, Ints]]) -> Doubles | None:
    """What is added to the scores by which the rows of a step take passes: of each sequence its
    gate, and the places of its rows. None if nothing is."""
    passes = max((len(gate.of.deeper or ()) for gate, _ in gates if gate is not None), default=0)
    if not passes:
        return None
    found = []
    for gate, places in gates:
        own = np.zeros((passes, len(places)))
        if gate is not None and gate.of.deeper is not None:
            own[:, places >= gate.of.deeper_from] = np.array(gate.of.deeper)[:, None]
        found.append(own)
    return np.concatenate(found, axis=1)


def _attentions(skips: Skips) -> Skips:
    return frozenset(each for each in skips if each[1] == ATTENTION)


def skips_of(gate: OpenGate | None, place: int = 0) -> Skips:
    """What the row of a sequence skips in a place."""
    if gate is None:
        return RUNS_ALL
    return gate.of.at(place).skips if gate.changes else gate.of.skips


def runs_of_rows(gate: OpenGate | None, places: Ints) -> list[Run]:
    """What rows of a sequence in these places skip, neighbours that skip the same together."""
    return [(RUNS_ALL, len(places))] if gate is None else gate.runs(places)


def active_rows(
    skips: Many[Skips], counts: Many[int], sublayers: Mapping[Sublayer, range]
) -> tuple[ActiveRows, ...]:
    """Where some rows of a step do not run: rows `counts[i]` skip the sublayers `skips[i]`, one
    run of rows after the other. `sublayers` are the program's operations."""
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
