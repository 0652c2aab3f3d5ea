"""Which parts of the model run for the rows of a sequence: `Gate`."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from ockham.core.cost import Skips
from ockham.core.seams.observe import Observer
from ockham.core.sparing import Rule


class GatedModel(msgspec.Struct, frozen=True):
    """The model as a gate sees it: so many layers, each of which has the sublayers (layer,
    "attention") and (layer, "feed_forward")."""

    layers: int
    hidden_size: int = 0
    """Of the residual stream; 0 where that is not known."""
    neurons: tuple[int, ...] = ()
    """Of each layer's feed-forward; 0 for one that always runs whole or not at all."""
    passes: int = 1
    """How often the layers between the first and the last one run."""
    read_by_others: frozenset[int] = frozenset()
    """Layers whose keys and values other layers read too."""


class Stretch(NamedTuple):
    """Neighbouring places of a sequence whose rows skip the same."""

    skips: Skips
    until: int | None
    """The place after them; None where all later rows skip the same."""


class SequenceGate(Observer, Protocol):
    """The sublayers that the rows of one sequence skip.

    A row that skips an attention writes no key and no value there and looks at none, and what it
    skips is decided before it is computed. What rows skip may depend on their place in the
    sequence (`at`), and on nothing else: a row that is computed again skips the same. A row sees
    the keys of all rows before it, so that an attention which one row skips is skipped by all
    later rows. `Gates` refuses a gate that breaks this.
    """

    observes: ClassVar[bool] = False
    """Whether it wants to know something of the sequence's rows, as an `Observer`."""

    skips: Skips
    """The sublayers that no row of the sequence runs."""

    spares: Rule | None = None
    """By which rule rows decide, while they are computed, how much of their feed-forwards they run;
    None: they do not. Whatever is decided, keys are written."""

    deeper: tuple[float, ...] | None = None
    """What is added to the scores by which rows take each pass but the first, of a model that runs
    layers several times; None: nothing."""

    deeper_from: int = 0
    """The first token for which it is added, counted from 0 with the prompt."""

    def for_prompt(self, tokens: int) -> SequenceGate:
        """The gate of a sequence whose prompt has so many tokens."""
        return self

    def at(self, place: int) -> Stretch:
        """What the row of token `place` skips, counted from 0 with the prompt, and how long that
        stays so."""
        return Stretch(self.skips, None)

    def fork(self) -> SequenceGate:
        """That of another sequence, which goes on from this one's state."""
        return self


class Gate(Protocol):
    """Which parts of the model run for the rows of a sequence.

    State depends on it, so that a gate which skips anything is not exact. If what is skipped
    follows from the ask and the place alone, the class says `shares = True`: sequences that ask the
    same may go on from each other's state. If rows of a prompt run everything, the class has a
    method `alters_prompts(ask)` that says False: the state of a prompt is then everybody's, and
    that of what comes after it nobody else's.
    """

    name: ClassVar[str]

    def open(self, ask: Any, model: GatedModel) -> SequenceGate | None:
        """The gate of a sequence, from what its request asks (the class's `Ask`); None if its rows
        run everything. Raises InvalidRequest where the ask does not fit the model."""
        ...
