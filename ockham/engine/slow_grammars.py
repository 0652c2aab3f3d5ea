"""Grammars that are still at work on what may follow a sequence's latest token."""

from __future__ import annotations

from ockham.engine.assemble import Assembly
from ockham.engine.endings import Endings
from ockham.engine.messages import Delta
from ockham.engine.sequence import Sequence


class SlowGrammars:
    """Sequences that sit steps out, until their grammars have said what may follow, beside the
    steps."""

    def __init__(self, engine: Assembly, endings: Endings) -> None:
        self._engine, self._endings = engine, endings
        self._unsettled: set[Sequence] = set()

    def leave(self, sequence: Sequence) -> None:
        """What its grammar says of its latest token is found out beside the steps."""
        sequence.unsettled = True
        self._unsettled.add(sequence)

    def settle(self) -> list[Delta]:
        """End the sequences of which it has become known, since their latest token, that nothing
        more may come, and those whose grammar takes too long to say."""
        deltas = []
        running = self._engine.scheduler.running
        late = [s for s in running if s.grammar is not None and s.grammar.late]
        for sequence in {*self._unsettled, *late}:
            grammar, asked = sequence.grammar, sequence.params.structured_outputs
            if sequence.finish_reason is not None or grammar is None or asked is None:
                self._unsettled.discard(sequence)
                continue
            delta = Delta(sequence.request_id, sequence.index)
            if grammar.late:
                reason = grammar.give_up()
                self._engine.grammars.refuse(asked, reason)
                deltas.append(self._endings.end(sequence, delta, "error", reason))
            elif sequence.unsettled and grammar.ready:
                self._unsettled.discard(sequence)
                sequence.unsettled = False
                if grammar.complete:
                    deltas.append(self._endings.end(sequence, delta, "stop"))
                elif len(sequence.tokens) >= sequence.most_tokens:
                    deltas.append(self._endings.end(sequence, delta, "length"))
        return deltas

    def wait(self, most_s: float) -> bool:
        """Sleep until a grammar is ready, if a running sequence waits for one. Whether any did."""
        for sequence in self._engine.scheduler.running:
            if sequence.grammar is not None and not sequence.grammar.ready:
                sequence.grammar.wait(most_s)
                return True
        return False
