"""Branches of a search whose texts are written by a script, a character a token, without a model:
what a search does with texts that no small model writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Continue,
    Drop,
    End,
    Finish,
    Fork,
    Hold,
    Problem,
    SearchState,
    TokenScores,
    Write,
)

END = "\0"
"""The token that ends a text. It has no text itself."""


@dataclass
class ScriptedBranch:
    number: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    held: bool = False
    scores: TokenScores = field(default_factory=TokenScores)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def text(self) -> str:
        return "".join(map(chr, self.tokens)).replace(END, "")

    def place(self, characters: int) -> int:
        return max(n for n in range(self.length + 1) if self.characters(n) <= characters)

    def characters(self, tokens: int) -> int:
        return len("".join(map(chr, self.tokens[:tokens])).replace(END, ""))

    def push(self, text: str, most: int, ends: bool = True) -> None:
        for letter in text:
            if self.finish_reason is None:
                self.tokens.append(ord(letter))
                self.scores.add(-0.1, 1.0, 1.0)
                if letter == END and ends:
                    self.finish_reason = "stop"
                elif self.length >= most:
                    self.finish_reason = "length"


def problem(prompt: int = 3, seats: int = 64, **params: object) -> Problem:
    return Problem(
        np.arange(prompt, dtype=np.int32),
        SamplingParams(**params),  # type: ignore[arg-type]
        "",
        frozenset([ord(END)]),
        seats,
        True,
        True,
        encode=lambda text: [ord(letter) for letter in text],
    )


def play(
    state: SearchState, script: Callable[[str], str], step: int = 1, most: int = 10_000
) -> tuple[str, Finish]:
    """The first choice of a search, if that is a branch, and how it finished. `script` says what
    follows a text; each step brings `step` characters of it, as if drafts were right."""
    branches = {0: ScriptedBranch(0)}
    for _ in range(10_000):
        live = [b for b in branches.values() if b.finish_reason is None and not b.held]
        assert live, "nothing runs"
        assert sum(b.finish_reason is None for b in branches.values()) <= state.width
        for branch in live:
            branch.push(script(branch.text)[:step], most)
        again = True
        while again:
            ended = sum(b.finish_reason is not None for b in branches.values())
            for action in state.after(branches):
                if isinstance(action, Finish):
                    (choice, *_) = action.choices
                    return (branches[choice].text if isinstance(choice, int) else ""), action
                _do(branches, action, most)
            again = sum(b.finish_reason is not None for b in branches.values()) > ended
    raise AssertionError("it does not end")


def _do(branches: dict[int, ScriptedBranch], action: object, most: int) -> None:
    if isinstance(action, Fork):
        source = branches[action.branch]
        said = source.length if action.tokens is None else action.tokens
        assert action.number not in branches
        assert said < source.length or source.finish_reason is None or not said
        child = ScriptedBranch(action.number, source.tokens[:said])
        child.scores, child.held = source.scores.first(said), source.held
        branches[action.number] = child
    elif isinstance(action, Write):
        branches[action.branch].push("".join(map(chr, action.tokens)), most, action.ends)
    elif isinstance(action, End):
        branches[action.branch].finish_reason = "stop"
    elif isinstance(action, Drop):
        del branches[action.branch]
    elif isinstance(action, Hold):
        branches[action.branch].held = True
    else:
        assert isinstance(action, Continue)
        branches[action.branch].held = False


def follows(script: Mapping[str, str]) -> Callable[[str], str]:
    """A script: what follows a text that ends with a key and a part of its value; the key "" is the
    beginning."""

    def continuation(text: str) -> str:
        for key, value in script.items():
            at = text.rfind(key) if key else 0
            if at >= 0 and value.startswith(text[at + len(key) :]):
                return value[len(text) - at - len(key) :]
        raise AssertionError(f"nothing follows {text!r}")

    return continuation
