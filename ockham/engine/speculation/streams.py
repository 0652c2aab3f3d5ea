"""The drafters' streams: opened with a sequence, told what it says, closed with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ockham.core.seams import DraftStream, Observer, OwnRows, Seen, Wants
from ockham.engine.sequence import Sequence
from ockham.engine.speculation.acceptance import OwnAcceptance
from ockham.engine.speculation.known import KnownDrafter, KnownSequence

_MOST_FED = 4096
"""Most tokens of a sequence that its drafters receive before one step. All of a long prompt at once
would delay every sequence by tens of milliseconds."""


Observers = Mapping[Sequence, Iterable[Observer]]


class Streams:
    """What the drafters know of each sequence that has decoded."""

    def __init__(self, drafters: list[KnownDrafter]) -> None:
        self._drafters = drafters
        self._learning = any(each.drafter.learns for each in drafters)
        self._observe = any(each.drafter.observes for each in drafters)
        self._reading = [each for each in drafters if each.drafter.reads]
        self._known: dict[Sequence, KnownSequence] = {}
        self.observers: dict[Sequence, list[Observer]] = {}
        """Of each sequence, the streams of the drafters that observe; none if no drafter does."""
        self.readers: dict[Sequence, list[DraftStream]] = {}
        """Those of them that are told of every row."""

    def meet(self, sequences: Iterable[Sequence]) -> None:
        """Rows of these sequences are computed next."""
        if not self._reading:
            return
        for sequence in sequences:
            if sequence not in self.readers:
                opened = [each.open(sequence) for each in self._reading]
                self.readers[sequence] = opened
                self.observers.setdefault(sequence, []).extend(opened)

    def of(self, sequence: Sequence) -> KnownSequence:
        """What is known of a sequence that `fed` has named before."""
        return self._known[sequence]

    def fed(self, sequence: Sequence) -> KnownSequence:
        """What is known of a sequence: all of its tokens, but for the end of a long prompt, which
        the drafters are told in several steps."""
        known = self._known.get(sequence)
        if known is None:
            self.meet([sequence])
            opened = iter(self.readers.get(sequence, ()))
            known = self._known[sequence] = KnownSequence(
                [
                    next(opened) if each.drafter.reads else each.open(sequence)
                    for each in self._drafters
                ],
                [OwnAcceptance(len(each.drafter.kinds)) for each in self._drafters],
            )
            if self._observe:
                self.observers[sequence] = [
                    stream if each.drafter.reads else FedObserver(self, sequence, known, stream)
                    for each, stream in zip(self._drafters, known.streams, strict=True)
                    if each.drafter.observes
                ]
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

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        known = self._known.pop(sequence, None)
        self.observers.pop(sequence, None)
        streams: list[DraftStream] = self.readers.pop(sequence, [])
        if known is not None:
            if self._learning:
                self.feed(known, sequence)  # others may go on as it ended
            streams = known.streams
        for stream in streams:
            stream.close()

    def forget_all(self) -> None:
        """No sequence that is known runs any longer."""
        for sequence in [*self._known, *(each for each in self.readers if each not in self._known)]:
            self.forget(sequence)

    @property
    def bytes(self) -> int:
        """Memory that all streams take, about."""
        return sum(stream.bytes for known in self._known.values() for stream in known.streams)


class FedObserver(Observer):
    """A stream that is given its sequence's tokens before it is told by which row the newest one
    was chosen."""

    __slots__ = ("_known", "_sequence", "_stream", "_streams")

    def __init__(
        self, streams: Streams, sequence: Sequence, known: KnownSequence, stream: DraftStream
    ) -> None:
        self._streams, self._sequence = streams, sequence
        self._known, self._stream = known, stream

    def wants(self, own: OwnRows) -> Wants:
        return self._stream.wants(own)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        if seen.newest:
            if self._known.fed + _MOST_FED < len(self._sequence.tokens):
                return  # it has not been given the prompt yet
            self._streams.feed(self._known, self._sequence, but=1)
        self._stream.saw(own, seen)
