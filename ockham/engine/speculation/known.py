"""What is known of each drafter, and of each sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from ockham.core.seams import Drafter, DraftStream
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.acceptance import Acceptance, OwnAcceptance
from ockham.engine.speculation.merit import Merit


class KnownDrafter:
    """A drafter, what it is able to do, and how well it has done. `number` is its place among the
    engine's drafters."""

    def __init__(self, number: int, drafter: Drafter) -> None:
        self.number = number
        self.drafter = drafter
        self.joint = drafter if drafter.joint else None
        """The drafter, if it proposes for all sequences together, which takes time."""
        self.constrained = drafter.certain
        """Whether it proposes only what is certain."""
        self.acceptance = Acceptance(drafter.kinds)
        self.merit = Merit()
        self.spent_s = self.gained_s = 0.0
        """If it takes time: seconds that it took for the last step, and that its tokens gained."""

    def open(self, sequence: Sequence) -> DraftStream:
        """Begin with a sequence."""
        constraint = sequence.constraint
        if constraint is None:
            return self.drafter.open(sequence.salt)
        return self.drafter.open_constrained(sequence.salt, constraint)


@dataclass(slots=True)
class KnownSequence:
    """A sequence as the drafters have been told it: a stream of each, in their order."""

    streams: list[DraftStream]
    acceptances: list[OwnAcceptance]
    fed: int = 0
    """Tokens that the streams have been told."""
    hoped: list[tuple[int, int]] = field(default_factory=list)
    """The marks after the latest token, by drafter and kind: whether they were worth their rows is
    seen from what is drafted by them."""
