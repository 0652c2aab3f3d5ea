"""What followed the longest suffix of a growing text when it came before.

`PlainAutomaton` is the plain twin of csrc/drafts/suffix_automaton.h, which decides everything as
it does.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ockham.core.arrays import Ints
from ockham.kernels.native import core

UPDATED_STATES = 8
"""States whose latest place is brought up to date when a token comes. The rest of the way to the
root may be long, and an older place of a short match is as good."""
LOOKED_AT = 8
"""States whose continuations are looked at for a draft."""


class Copy(NamedTuple):
    """A tree of tokens: `parents[i]` is the index of token i's parent, -1 for the root;
    `matched[i]` how many tokens before it, those drafted included, stood so before."""

    tokens: list[int]
    parents: list[int]
    matched: list[int]


class Automaton(Protocol):
    """The suffix automaton of a growing sequence of tokens."""

    def extend(self, tokens: Ints) -> None: ...

    def propose(
        self, most: int, branches: int, side: int, least: int
    ) -> tuple[list[int], list[int], list[int]]:
        """The fields of a `Copy`: what followed the longest suffix that came before, in a chain of
        up to `most` tokens, and up to `branches` - 1 shorter chains of `side` tokens that began
        otherwise. Suffixes of fewer than `least` tokens are not looked at."""
        ...

    @property
    def length(self) -> int:
        """Tokens so far."""
        ...

    @property
    def bytes(self) -> int:
        """Memory that it takes, about."""
        ...


class _State:
    __slots__ = ("before", "edges", "latest", "length", "link")

    def __init__(self, length: int, link: int, latest: int, before: int) -> None:
        self.length = length
        self.link = link
        self.edges: dict[int, int] = {}
        self.latest = latest
        """Where its strings ended last."""
        self.before = before
        """Where they ended the time before."""


class PlainAutomaton:
    """The suffix automaton of a growing sequence (Blumer et al. 1985), built token by token."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._states = [_State(0, -1, -1, -1)]
        self._last = 0

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def states(self) -> int:
        return len(self._states)

    @property
    def bytes(self) -> int:
        edges = sum(len(state.edges) for state in self._states)
        return 8 * len(self._tokens) + 300 * len(self._states) + 50 * edges

    def extend(self, tokens: Ints) -> None:
        for token in tokens.tolist():
            self._push(token)

    def propose(
        self, most: int, branches: int, side: int, least: int
    ) -> tuple[list[int], list[int], list[int]]:
        draft = Copy([], [], [])
        begun: list[int] = []  # first tokens of the chains
        number = self._states[self._last].link
        for _ in range(LOOKED_AT):
            if number <= 0:
                break
            state = self._states[number]
            if state.length < least or len(begun) >= branches:
                break
            number = state.link
            # The latest place may be the end of the text, which nothing follows yet.
            place = state.before if state.latest == len(self._tokens) - 1 else state.latest
            if place < 0 or self._tokens[place + 1] in begun:
                continue
            self._chain(draft, place + 1, min(most, side) if begun else most, state.length)
            begun.append(self._tokens[place + 1])
        return draft

    def _chain(self, draft: Copy, start: int, most: int, matched: int) -> None:
        """Append what stands from `start` on; where the text ends, the draft copies itself."""
        text, first = self._tokens, len(draft.tokens)
        for i in range(most):
            place = start + i
            token = text[place] if place < len(text) else draft.tokens[first + place - len(text)]
            draft.tokens.append(token)
            draft.parents.append(first + i - 1 if i else -1)
            draft.matched.append(matched + i)

    def _push(self, token: int) -> None:
        place = len(self._tokens)
        self._tokens.append(token)
        states = self._states
        current = len(states)
        states.append(_State(states[self._last].length + 1, 0, place, -1))
        number = self._last
        while number >= 0 and token not in states[number].edges:
            states[number].edges[token] = current
            number = states[number].link
        if number >= 0:
            following = states[number].edges[token]
            length = states[number].length + 1
            if states[following].length != length:
                following = self._split(number, token, following, length)
            states[current].link = following
        self._last = current
        number = states[current].link
        for _ in range(UPDATED_STATES):
            if number <= 0:
                break
            state = states[number]
            state.before, state.latest = state.latest, place
            number = state.link

    def _split(self, number: int, token: int, following: int, length: int) -> int:
        """A twin of state `following` for its strings of up to `length` tokens, which now end in
        more places than its longer ones."""
        states = self._states
        old, twin = states[following], len(states)
        states.append(_State(length, old.link, old.latest, old.before))
        states[twin].edges = dict(old.edges)
        old.link = twin
        while number >= 0 and states[number].edges.get(token) == following:
            states[number].edges[token] = twin
            number = states[number].link
        return twin


def make_automaton() -> Automaton:
    """The native automaton where the core was built, the plain one elsewhere."""
    return PlainAutomaton() if core is None else core.SuffixAutomaton()
