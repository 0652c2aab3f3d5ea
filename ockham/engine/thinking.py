"""Where one sequence is in the thought before its answer, and how that thought is made to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from ockham.core.seams import Constraint
from ockham.core.thoughts import ThoughtMarks

WHITE = b" \t\r\n"
_LONGEST_CHARACTER = 4
"""In bytes."""


class Phase(Enum):
    BEFORE = "before"
    """Nothing has come that tells whether there is a thought."""
    INSIDE = "inside"
    CLOSED = "closed"
    """The thought has ended. The answer begins with what is no white space."""
    ANSWER = "answer"


class Thinking:
    """A function of the tokens that came, but for `end`, by which a thought ends early.

    `closing` are the tokens that must come next, because the thought must end: the rest of a
    closing text. Tokens are looked at only if something depends on them (`watched`).
    """

    __slots__ = (
        "_budget",
        "_ends",
        "_marks",
        "_open",
        "_spell",
        "_tail",
        "_text",
        "_thought",
        "begins",
        "closing",
        "forced",
        "phase",
        "watched",
    )

    def __init__(
        self,
        marks: ThoughtMarks,
        budget: int | None,
        text: Sequence[int],
        spell: Callable[[int], bytes],
        *,
        watched: bool,
    ) -> None:
        """`text` is the closing text, which holds the mark that ends a thought. `spell` gives the
        bytes of a token. `watched`: something depends on where the answer begins."""
        self._marks, self._budget, self._text, self._spell = marks, budget, text, spell
        self._open = marks.open.encode()
        self._ends = tuple(mark.encode() for mark in (marks.close, *marks.or_at))
        self.watched = watched or budget is not None
        self.phase = Phase.INSIDE if marks.inside else Phase.BEFORE
        self.closing: list[int] = []
        self.forced = self.begins = False
        """Whether the latest token was one of a closing text, and whether the answer began with
        it."""
        self._tail = b""
        """The latest bytes, as far as a mark may begin in them."""
        self._thought = 0
        """Tokens of the thought, its opening mark aside."""
        if self.phase is Phase.INSIDE:
            self._spend()

    def fresh(self) -> Thinking:
        """That of another choice, before its first token. A thought that was made to end before
        the first token ends there too."""
        twin = Thinking(self._marks, self._budget, self._text, self._spell, watched=self.watched)
        if self.closing and not self._thought:
            twin.closing = list(self._text)
        return twin

    def fork(self) -> Thinking:
        """Another one that stands here."""
        twin = Thinking(self._marks, self._budget, self._text, self._spell, watched=self.watched)
        twin.phase, twin.closing, twin.forced = self.phase, list(self.closing), self.forced
        twin._tail, twin._thought = self._tail, self._thought
        return twin

    @property
    def answering(self) -> bool:
        """Whether the latest token belongs to the answer."""
        return self.phase is Phase.ANSWER and not self.forced

    @property
    def undecided(self) -> bool:
        """Whether what came so far may turn out to be the beginning of the answer."""
        return self.phase is Phase.BEFORE

    def end(self, tokens: Sequence[int]) -> bool:
        """Let the thought end with the next token; False if there is none that could. `tokens` are
        those that came, if they were not looked at."""
        if not self.watched:
            self.watched = True
            for token in tokens:
                self.advance(token)
        if self.phase is not Phase.INSIDE:
            return False
        if not self.closing:
            self.closing = list(self._text)
        return True

    def go_on_closing(self, closing: Sequence[int], tokens: Sequence[int]) -> None:
        """Write the rest of a closing text, after `tokens`, the last of which may belong to it."""
        if closing:
            self.end(tokens)
        self.closing = list(closing)

    def advance(self, token: int) -> None:
        """`token` has come."""
        self.forced, self.begins = bool(self.closing), False
        if self.closing:
            del self.closing[0]
        if self.phase is Phase.ANSWER:
            return
        self._tail += self._spell(token)
        if self.phase is Phase.BEFORE:
            self._look_for_opening()
        elif self.phase is Phase.INSIDE:
            self._thought += 1
            self._look_for_end()
        elif self._tail.strip(WHITE):
            self._answer()
        else:
            self._tail = b""

    def _look_for_opening(self) -> None:
        said = self._tail.lstrip(WHITE)
        if said.startswith(self._open):
            self.phase, self._tail = Phase.INSIDE, said[len(self._open) :]
            self._look_for_end()
        elif not self._open.startswith(said):
            self._answer()

    def _answer(self) -> None:
        self.phase, self._tail, self.begins = Phase.ANSWER, b"", not self.forced

    def _look_for_end(self) -> None:
        # Behind the last token of a closing text the thought is over, however it spells its mark.
        over = self.forced and not self.closing
        if over or any(end in self._tail for end in self._ends):
            self.phase, self._tail = Phase.CLOSED, b""
            return
        self._tail = self._tail[-max(_LONGEST_CHARACTER, *map(len, self._ends)) + 1 :]
        if not self.forced:
            self._spend()

    def _spend(self) -> None:
        """Begin the closing text if the budget is used up, behind a whole character. Bytes that
        are none are not waited for any longer than one could take."""
        if self._budget is None or self._thought < self._budget:
            return
        if _is_whole(self._tail) or self._thought >= self._budget + _LONGEST_CHARACTER - 1:
            self.closing = list(self._text)


class Closing:
    """What leaves a sequence no choice: the rest of a closing text, else its grammar."""

    def __init__(self, thinking: Thinking, grammar: Constraint | None) -> None:
        self._thinking, self._grammar = thinking, grammar

    def forced(self) -> Sequence[int]:
        """The only tokens that may come next, one after the other; empty if there is a choice."""
        if self._thinking.closing:
            return self._thinking.closing
        return () if self._grammar is None else self._grammar.forced()


def _is_whole(text: bytes) -> bool:
    """Whether no character is begun at the end of a text."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:
            return back >= 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
    return True
