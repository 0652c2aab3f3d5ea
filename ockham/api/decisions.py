"""Typed questions about one state, each answered by the probabilities of one token.

Every question is a prompt of its own: the state, the question with its options, and what the answer
may be. The prompts begin alike, so that the prefix cache computes the state once. Nothing is
sampled: the log probabilities of the options' labels, at the place of the answer's first token,
give a probability for each option.

`LLM.decide`, `AsyncLLM.decide` and the server ask and read in this one way.
"""

from __future__ import annotations

import json
import math
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ockham.api.chatting import ChatPlan
from ockham.core.errors import InvalidRequest
from ockham.core.ledger import Ledger
from ockham.core.numbers import shown
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.text.tokenizer import Tokenizer

Kind = Literal["choice", "score", "yes_no"]

MOST_QUESTIONS = 64
MOST_OPTIONS: dict[Kind, int] = {"choice": 26, "score": 10, "yes_no": 2}
_LEAST_OPTIONS: dict[Kind, int] = {"choice": 1, "score": 2, "yes_no": 2}
_CLOSINGS: dict[Kind, str] = {
    "choice": "Answer with the letter of one option only.",
    "score": "Answer with the number of one level only.",
    "yes_no": "Answer with yes or no only.",
}


class Choice(msgspec.Struct, frozen=True):
    """Which of the options? `criteria`: the options' names, or name -> what it stands for."""

    instructions: str
    criteria: Mapping[str, str | None] | Sequence[str]


class Score(msgspec.Struct, frozen=True):
    """How far up an ordered scale? `criteria` are its levels, from the lowest on."""

    instructions: str
    criteria: Sequence[str]


class YesNo(msgspec.Struct, frozen=True):
    """Is it so? `yes` and `no` say what either answer stands for."""

    instructions: str
    yes: str = ""
    no: str = ""


class DecisionAnswer(msgspec.Struct, kw_only=True):
    """`probabilities` of the options by name: of a score's levels "0" and up, else "yes" and "no".
    They sum to 1. `choice` is the likeliest, `score` the expected level of a score. `label_mass` is
    the probability of all labels among the whole vocabulary: where it is low, the model wanted to
    say something else. `argmax_is_label`: whether its likeliest token was a label."""

    probabilities: dict[str, float]
    choice: str
    score: float | None = None
    label_mass: float
    argmax_is_label: bool

    @property
    def confidence(self) -> float:
        """The likeliest option's probability among the whole vocabulary."""
        return self.probabilities[self.choice] * self.label_mass


class DecisionOutput(msgspec.Struct):
    """Answers by the questions' names. The ledger is the bill of all of them: the state is computed
    once and reused by every further question."""

    answers: dict[str, DecisionAnswer]
    ledger: Ledger


class Reading(msgspec.Struct):
    """What was read at one answer's place: a probability for each option, in their order."""

    probabilities: list[float]
    label_mass: float
    argmax_is_label: bool

    @property
    def likeliest(self) -> int:
        return self.probabilities.index(max(self.probabilities))

    @property
    def expected(self) -> float:
        return math.fsum(i * each for i, each in enumerate(self.probabilities))

    @property
    def confidence(self) -> float:
        return max(self.probabilities) * self.label_mass


class Asked(msgspec.Struct, frozen=True):
    """A question with its options: their names, and what each stands for, if that is said."""

    kind: Kind
    text: str
    names: tuple[str, ...]
    details: tuple[str, ...]

    def check(self, where: str) -> None:
        """Raises InvalidRequest for too few or too many options."""
        least, most = _LEAST_OPTIONS[self.kind], MOST_OPTIONS[self.kind]
        if not least <= len(self.names) <= most:
            options = "levels" if self.kind == "score" else "options"
            raise InvalidRequest(
                f"{where} has {len(self.names)} {options}; a question of the type {self.kind} has "
                f"{least} to {most}.",
                where,
            )
        if len(set(self.names)) < len(self.names):
            raise InvalidRequest(f"{where} has two options of the same name.", where)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model may answer, option by option."""
        if self.kind == "choice":
            return tuple(string.ascii_uppercase[: len(self.names)])
        if self.kind == "score":
            return tuple(string.digits[: len(self.names)])
        return ("yes", "no")

    def spellings(self, option: int) -> tuple[str, ...]:
        """The ways of writing an option's label that all count for it."""
        label = self.labels[option]
        forms = (label, label.capitalize()) if self.kind == "yes_no" else (label,)
        return (*forms, *(f" {form}" for form in forms))

    def prompt(self) -> str:
        """The question as it stands behind the state."""
        lines = [f"Question: {self.text}"] if self.text else []
        for label, name, detail in zip(self.labels, self.names, self.details, strict=True):
            if self.kind == "choice":
                lines.append(f"{label}: {name} - {detail}" if detail else f"{label}: {name}")
            elif detail:
                lines.append(f"{label}: {detail}")
        return "\n".join([*lines, _CLOSINGS[self.kind]])

    def answer(self, reading: Reading) -> DecisionAnswer:
        return DecisionAnswer(
            probabilities=dict(zip(self.names, reading.probabilities, strict=True)),
            choice=self.names[reading.likeliest],
            score=reading.expected if self.kind == "score" else None,
            label_mass=reading.label_mass,
            argmax_is_label=reading.argmax_is_label,
        )


def choice(text: str, options: Sequence[tuple[str, str]]) -> Asked:
    return Asked("choice", text, *_columns(options))


def score(text: str, levels: Sequence[str]) -> Asked:
    return Asked("score", text, tuple(str(i) for i in range(len(levels))), tuple(levels))


def yes_no(text: str, yes: str = "", no: str = "") -> Asked:
    return Asked("yes_no", text, ("yes", "no"), (yes, no))


def _columns(options: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name, _ in options), tuple(detail for _, detail in options)


def read_questions(questions: Any) -> dict[str, Asked]:
    """The questions of a Python caller by name. Raises InvalidRequest."""
    if not isinstance(questions, Mapping):
        raise InvalidRequest(
            f"questions must map names to Choice, Score or YesNo, got {shown(questions)}.",
            "questions",
        )
    found = {}
    for name, question in questions.items():
        if isinstance(question, Choice):
            given = question.criteria
            named = given if isinstance(given, Mapping) else dict.fromkeys(given)
            options = [(text_of(key), text_of(detail)) for key, detail in named.items()]
            asked = choice(text_of(question.instructions), options)
        elif isinstance(question, Score):
            asked = score(text_of(question.instructions), [text_of(e) for e in question.criteria])
        elif isinstance(question, YesNo):
            asked = yes_no(text_of(question.instructions), question.yes, question.no)
        else:
            raise InvalidRequest(
                f"questions[{shown(name)}] must be a Choice, Score or YesNo, got "
                f"{shown(question)}.",
                "questions",
            )
        found[str(name)] = asked
    check_questions(found)
    return found


def check_questions(questions: Mapping[str, Asked]) -> None:
    """Raises InvalidRequest for questions that cannot be asked."""
    if not 1 <= len(questions) <= MOST_QUESTIONS:
        raise InvalidRequest(
            f"questions has {len(questions)} entries; send 1 to {MOST_QUESTIONS}.", "questions"
        )
    for name, asked in questions.items():
        asked.check(f"questions[{shown(name)}]")


def text_of(value: Any) -> str:
    """A state, or a part of a question: a text as it is, anything else as compact JSON. Raises
    InvalidRequest for what has no JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"a state must be text or JSON: {error}.", "state") from error


class Frame:
    """The conversation that all questions stand in, at the end of its last message."""

    def __init__(self, before: Sequence[Mapping[str, Any]]) -> None:
        """`before` are the messages that hold the state."""
        self._mark = f"[{secrets.token_hex(16)}]"
        *earlier, last = before
        if last["role"] == "user":
            last = {**last, "content": f"{last['content']}\n\n{self._mark}"}
            self.messages = [*map(dict, earlier), last]
        else:
            self.messages = [*map(dict, before), {"role": "user", "content": self._mark}]

    def decider(
        self, tokenizer: Tokenizer, plan: ChatPlan, rendered: str, questions: Sequence[Asked]
    ) -> Decider:
        """What asks the questions, of the chat template's rendering of `messages`. Raises
        InvalidRequest."""
        parts = rendered.split(self._mark)
        if len(parts) != 2:
            raise InvalidRequest(
                "the chat template does not show a message's text as it is, so that no question "
                "can be put into it; give another template with --chat-template."
            )
        if plan.style.in_thought(rendered):
            raise InvalidRequest(
                "the chat template begins the answer with a thought, and a decision is read from "
                "the first token; send chat_template_kwargs that turn thinking off.",
                "chat_template_kwargs",
            )
        labels = _Labels(tokenizer, parts[1])
        return Decider([Read.of(asked, parts[0], parts[1], labels) for asked in questions])


def state_messages(state: Any, instructions: Any = None) -> list[dict[str, Any]]:
    """A state, and what holds for all questions about it, as messages. Raises InvalidRequest."""
    text = text_of(state)
    if not text.strip():
        raise InvalidRequest("state must not be empty.", "state")
    more = text_of(instructions)
    return [{"role": "user", "content": f"{text}\n\n{more}" if more else text}]


def variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The chat template's variables: thinking is off unless the caller's own turn it on."""
    return {"enable_thinking": False, "thinking": False, **(given or {})}


class _Labels:
    """The tokens that labels are at the place of the answer, which is where a text ends."""

    def __init__(self, tokenizer: Tokenizer, end: str) -> None:
        self._tokenizer, self._end = tokenizer, end

    def of(self, asked: Asked) -> list[list[int]]:
        """For each option the tokens that count for it. Raises InvalidRequest."""
        context = _CLOSINGS[asked.kind] + self._end
        before = self._encode(context)
        found: list[list[int]] = []
        for option, label in enumerate(asked.labels):
            ways = [
                after[len(before) :]
                for spelling in asked.spellings(option)
                if (after := self._encode(context + spelling))[: len(before)] == before
            ]
            whole = [way[0] for way in ways if len(way) == 1]
            # A small vocabulary may have no token for a word: what it begins with stands for it.
            tokens = whole or [way[0] for way in ways[:1] if way]
            if not tokens or any(set(tokens) & set(other) for other in found):
                raise InvalidRequest(
                    f"the label {label!r} has no token of its own behind this model's chat "
                    "template, so that its probability cannot be read; ask another model."
                )
            found.append(list(dict.fromkeys(tokens)))
        return found

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True, slots=True)
class Read:
    """One question's prompt, and how its answer is read."""

    asked: Asked
    text: str
    labels: list[list[int]]

    @classmethod
    def of(cls, asked: Asked, start: str, end: str, labels: _Labels) -> Read:
        return cls(asked, start + asked.prompt() + end, labels.of(asked))

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=0,
            logprob_token_ids=[token for tokens in self.labels for token in tokens],
        )

    def reading(self, output: RequestOutput) -> Reading:
        """What a finished output says."""
        [completion] = output.outputs
        [entry] = completion.logprobs or []
        logs = [[entry[token].logprob for token in tokens] for tokens in self.labels]
        top = max(map(max, logs))  # so that labels that are all unlikely can still be compared
        weights = [math.fsum(math.exp(log - top) for log in each) for each in logs]
        total = math.fsum(weights)
        return Reading(
            [weight / total for weight in weights],
            min(1.0, math.exp(top) * total),
            any(completion.token_ids[0] in tokens for tokens in self.labels),
        )


@dataclass(frozen=True, slots=True)
class Decider:
    """All questions about one state, in their order."""

    reads: list[Read]

    def readings(self, outputs: Sequence[RequestOutput]) -> list[Reading]:
        return [read.reading(output) for read, output in zip(self.reads, outputs, strict=True)]


def decision(questions: Mapping[str, Asked], readings: Sequence[Reading]) -> dict[str, Any]:
    """The answers by the questions' names."""
    pairs = zip(questions.items(), readings, strict=True)
    return {name: asked.answer(reading) for (name, asked), reading in pairs}


def bill(outputs: Sequence[RequestOutput]) -> Ledger:
    """The ledgers of all questions together."""
    ledger = Ledger()
    for output in outputs:
        ledger.add(output.ledger)
    return ledger
