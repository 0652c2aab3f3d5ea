"""Questions about one context through the engine: see `ockham.lab.tasks.shared`.

All questions about a context are one request, whose search says what was not drawn: the tokens of
the questions. So whatever a technique keeps of a context, private or shared, is what later
questions are answered from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ockham.core.arrays import Floats
from ockham.core.asks import Ask
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import (
    Action,
    Branch,
    Finish,
    Fork,
    Observer,
    OwnRows,
    Say,
    SearchState,
    Seen,
    Wants,
)
from ockham.engine.messages import Request
from ockham.lab.tasks.shared import Shared
from ockham.text.tokenizer import Tokenizer

_MARK = "\x00"
"""Stands where an answer will stand, while it is found out what comes around it."""


@dataclass(frozen=True, slots=True)
class Interview:
    """The tokens of a context and its questions. `prompt` is the context, in the ways `turns` and
    `after` with the first question; `asked` are the tokens that are said before each answer, and
    `max_tokens` the most of each answer."""

    way: str
    prompt: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]

    @property
    def first(self) -> tuple[int, ...]:
        """The context with its first question."""
        return self.prompt + self.asked[0]

    @property
    def branches(self) -> int:
        """Sequences that run at once."""
        return {"turns": 1, "requests": len(self.asked), "after": len(self.asked) - 1}[self.way]

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, at most, and one more: it is not to end by its length
        before its last answer does."""
        spans = [len(a) + most for a, most in zip(self.asked, self.max_tokens, strict=True)]
        if self.way == "turns":
            return len(self.prompt) + sum(spans) + 1
        behind = spans[0] if self.way == "after" else 0
        return len(self.prompt) + behind + max(spans) + 1

    def request(self, name: str, asks: Mapping[str, Ask] | None = None) -> Request:
        """The request that a `Talk` answers."""
        return Request(
            request_id=name,
            prompt_token_ids=list(self.prompt),
            params=SamplingParams(
                temperature=0.0, max_tokens=self.longest - len(self.prompt), ignore_eos=True
            ),
            asks=dict(asks or {}),
            detokenize=False,
        )


def interview_of(tokenizer: Tokenizer, shared: Shared, way: str) -> Interview:
    """A context and its questions as the model is told them: through the chat template, or, where
    there is none, each in a line."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def around(*contents: str) -> str:
        """A conversation whose last turn is to be answered."""
        if not tokenizer.has_chat_template:
            return "".join(f"{content}\n" for content in contents)
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)]
        return tokenizer.apply_chat_template(messages)

    first = [
        around(f"{_MARK}\n\n{question.text}").partition(_MARK) for question in shared.questions
    ]
    begins = encode(first[0][0] + shared.context)
    alone = [encode(rest) for _, _, rest in first]
    behind = [
        encode(around("", _MARK, question.text).rpartition(_MARK)[2])
        for question in shared.questions[1:]
    ]
    most = tuple(question.max_tokens for question in shared.questions)
    if way == "requests":
        return Interview(way, begins, tuple(alone), most)
    return Interview(way, (*begins, *alone[0]), ((), *behind), most)


def recital(prompt: Sequence[int], tokens: Sequence[int]) -> Interview:
    """A prompt and what is said after it, for a `Talk` whose one answer is given: its last token
    is predicted, and not said."""
    return Interview("turns", tuple(prompt), ((),), (len(tokens) - 1,))


class Talk(SearchState):
    """Says what is asked, and lets the model answer greedily: `answers` are its tokens.

    With `given` it says these answers instead of the model's own, and `logits` are what the model
    predicted while it decoded: for each answer, one vector for each of its tokens.
    """

    chooses: ClassVar[bool] = True

    def __init__(
        self,
        interview: Interview,
        stops: frozenset[int],
        given: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """An answer of the model's own ends before the first of `stops`."""
        self._interview, self._stops, self._given = interview, stops, given
        count = len(interview.asked)
        self.logits: list[list[Floats]] = [[] for _ in range(count)]
        self.newest: dict[int, Floats] = {}
        """The logits of the next token of each branch, where answers are given."""
        self.answers: list[list[int]] = [[] for _ in range(count)]
        self.ended = [False] * count
        """Whether each answer ended by itself."""
        self.likeliest: dict[int, int] = {}
        """The likeliest next token of each branch."""
        turns = interview.way == "turns"
        self._left: dict[int, deque[int]] = (
            {0: deque(range(count))} if turns else {n: deque([n]) for n in range(count)}
        )
        """The questions of each branch that are not answered yet."""
        self._forked = turns
        self._to_say = {n: deque(interview.asked[q[0]]) for n, q in self._left.items()}

    @property
    def width(self) -> int:
        return self._interview.branches

    def observer(self, branch: int) -> Observer:
        return _Likeliest(self, branch) if self._given is None else _Logits(self, branch)

    def predicted(self, answer: int, vocabulary: int) -> Floats:
        """The logits of a given answer's tokens: (tokens, vocabulary)."""
        rows = self.logits[answer]
        return np.stack(rows) if rows else np.empty((0, vocabulary), np.float32)

    def after(self, branches: Mapping[int, Branch]) -> Sequence[Action | Finish]:
        """See `SearchState`."""
        if self._interview.way == "requests" and not self._forked:
            return self._fork()
        actions: list[Action] = []
        for number, branch in branches.items():
            if branch.due and self._left[number]:  # else it waits for the others
                actions += self._next(number)
        if not any(self._left.values()):
            return [Finish([next(iter(branches))])]
        return actions

    def _next(self, number: int) -> list[Action]:
        """What becomes of a branch that is due."""
        if self._to_say[number]:
            return [Say(number, self._to_say[number].popleft())]
        left = self._left[number]
        if self._given is None:
            answer, token = self.answers[left[0]], self.likeliest[number]
            stops = token in self._stops
            if not stops and len(answer) < self._interview.max_tokens[left[0]]:
                answer.append(token)
                return [Say(number, token)]
        else:
            answer, given, stops = self.answers[left[0]], self._given[left[0]], False
            if len(answer) < len(given):
                self.logits[left[0]].append(self.newest[number])
                answer.append(given[len(answer)])
                if len(answer) < len(given) or len(left) > 1 or not self._forked:
                    return [Say(number, answer[-1])]
        self.ended[left.popleft()] = stops
        if left:
            self._to_say[number].extend(self._interview.asked[left[0]])
            return self._next(number)
        if self._forked:
            return []
        for questions in (self._left, self._to_say):  # the branch goes on with the second one
            questions[number] = questions.pop(number + 1)
        return self._fork()

    def _fork(self) -> list[Action]:
        """Let the questions that are left be asked side by side, from where the one branch
        stands."""
        self._forked = True
        forks = [Fork(0, number) for number in sorted(self._left)[1:]]
        return [*forks, *(Say(n, self._to_say[n].popleft()) for n in sorted(self._left))]


class _Likeliest(Observer):
    """Tells a talk what the model holds likeliest after the newest row of a branch."""

    def __init__(self, talk: Talk, branch: int) -> None:
        self._talk, self._branch = talk, branch

    def wants(self, own: OwnRows) -> Wants:
        return Wants(candidates=1)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self._talk.likeliest[self._branch] = int(seen.candidates[-1, 0])


class _Logits(Observer):
    """Tells a talk the logits of the newest row of a branch."""

    def __init__(self, talk: Talk, branch: int) -> None:
        self._talk, self._branch = talk, branch

    def wants(self, own: OwnRows) -> Wants:
        return Wants(logits=True)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        self._talk.newest[self._branch] = seen.logits[-1].copy()
