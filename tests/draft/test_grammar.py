"""The drafter of what a grammar leaves no choice about."""

from __future__ import annotations

from ockham.draft.copying import Copying, CopyingOptions
from ockham.draft.grammar import GrammarDrafter


class Known:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def forced(self) -> list[int]:
        return self.tokens


def test_what_must_come_is_a_chain() -> None:
    constraint = Known([5, 6, 7])
    stream = GrammarDrafter().open_constrained("", constraint)
    draft = stream.propose(16, [1.0], 0.5)
    assert draft is not None
    assert list(draft.tokens) == [5, 6, 7]
    assert list(draft.parents) == [-1, 0, 1]
    short = stream.propose(2, [1.0], 0.5)
    assert short is not None
    assert list(short.tokens) == [5, 6]
    constraint.tokens = []
    assert stream.propose(16, [1.0], 0.5) is None


def test_without_a_grammar_nothing_is_drafted() -> None:
    drafter = GrammarDrafter()
    assert drafter.open("").propose(16, [1.0], 0.5) is None
    assert drafter.certain
    assert not Copying(CopyingOptions()).certain
