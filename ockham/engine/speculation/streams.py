"""The drafters' streams: opened with a sequence, told what it says, closed with it."""

from __future__ import annotations

from typing import cast

import numpy as np

from ockham.core.seams import Floats, HiddenStream, Ints, MarkedStream, ObservingStream
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.acceptance import OwnAcceptance
from ockham.engine.speculation.known import KnownDrafter, KnownSequence

_MOST_FED = 4096
"""Most tokens of a sequence that its drafters receive before one step. All of a long prompt at once
would delay every sequence by tens of milliseconds."""


class Streams:
    """What the drafters know of each sequence that has decoded."""

    def __init__(self, drafters: list[KnownDrafter]) -> None:
        self._drafters = drafters
        self._learning = any(each.learning for each in drafters)
        self._known: dict[Sequence, KnownSequence] = {}

    def of(self, sequence: Sequence) -> KnownSequence:
        """What is known of a sequence that `fed` has named before."""
        return self._known[sequence]

    def fed(self, sequence: Sequence) -> KnownSequence:
        """What is known of a sequence: all of its tokens, but for the end of a long prompt, which
        the drafters are told in several steps."""
        known = self._known.get(sequence)
        if known is None:
            known = self._known[sequence] = KnownSequence(
                [each.open(sequence) for each in self._drafters],
                [OwnAcceptance(len(each.drafter.kinds)) for each in self._drafters],
            )
        self.feed(known, sequence, but=max(0, len(sequence.tokens) - known.fed - _MOST_FED))
        return known

    def feed(self, known: KnownSequence, sequence: Sequence, but: int = 0) -> None:
        """Tell the drafters the tokens that are new to them, all `but` so many."""
        upto = len(sequence.tokens) - but
        if known.fed < upto:
            new = np.array(sequence.tokens[known.fed : upto], np.int32)
            known.fed = upto
            for stream in known.streams:
                stream.extend(new)

    def tell_likely(self, sequence: Sequence, tokens: Ints, candidates: Ints) -> None:
        """A step had rows of a sequence with these inputs (n,), and these were likely after them:
        (n, `candidates`)."""
        known = self._known.get(sequence)
        if known is None:
            return
        for drafter, stream in zip(self._drafters, known.streams, strict=True):
            if drafter.candidates:
                observing = cast(ObservingStream, stream)
                observing.observe(tokens, np.ascontiguousarray(candidates[:, : drafter.candidates]))

    def tell_hidden(self, sequence: Sequence, hidden: Floats | None, guessed: Ints | None) -> None:
        """The row that produced a sequence's newest token has this hidden state after the last
        layer, (hidden_size,), and the marks after it found these likely, (marks, count)."""
        known = self._known.get(sequence)
        if known is None or known.fed + _MOST_FED < len(sequence.tokens):
            return
        for drafter, stream in zip(self._drafters, known.streams, strict=True):
            if drafter.wants_hidden_states and hidden is not None:
                self.feed(known, sequence, but=1)
                cast(HiddenStream, stream).stand(hidden)
            if drafter.marks is not None and guessed is not None and len(guessed):
                self.feed(known, sequence, but=1)
                cast(MarkedStream, stream).guess(guessed)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        known = self._known.pop(sequence, None)
        if known is not None:
            if self._learning:
                self.feed(known, sequence)  # others may go on as it ended
            for stream in known.streams:
                stream.close()

    def forget_all(self) -> None:
        """No sequence that is known runs any longer."""
        for sequence in list(self._known):
            self.forget(sequence)

    @property
    def bytes(self) -> int:
        """Memory that all streams take, about."""
        return sum(stream.bytes for known in self._known.values() for stream in known.streams)
