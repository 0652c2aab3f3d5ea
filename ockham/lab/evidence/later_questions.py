"""Five questions about one context: the first, and four over the state that the first one left.

A rule that drops cells chooses them by what it knows then. SCBench (Li et al. 2024,
arXiv:2412.10319) found that rules which do well on the first question fail from the second on. So
cells are dropped at the end of the first question, and later questions are asked of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import fmean
from typing import Any

from ockham.core.errors import ConfigError
from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, Score, ask
from ockham.lab.statistics import paired_difference
from ockham.lab.tasks import recall
from ockham.lab.tasks.answers import says
from ockham.lab.tasks.documentation import draw_prose
from ockham.lab.tasks.documents import describe_people, draw_people, draw_question
from ockham.lab.tasks.english import draw_hidden
from ockham.lab.tasks.item import Count, Item, is_answer
from ockham.lab.tasks.reading import draw_documents

QUESTIONS = 5
RECALL_TOKENS, DOCUMENTS = 400, 8
ANSWER_TOKENS = 64

Asks = Callable[[int], Mapping[str, Any]]
"""What is asked of a request whose first question ends with so many tokens."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Prompts of one context, each with what scores its answer: the first question, and the others,
    which follow the first and its answer. `first_tokens` is how many tokens the first prompt has.
    """

    prompts: list[tuple[list[int], Score]]
    first_tokens: int


def conversations(bench: Bench, engine: Engine, contexts: int = 0) -> list[Conversation]:
    """So many contexts, or as many as the suite has time for, of each of the tasks `recall` and
    `documents`, or of `needles` and `reading`. Raises ConfigError where the model has no tokenizer,
    or its context no room for them."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise ConfigError("questions are asked in this measurement, and there is no tokenizer.")

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    def encode(*texts: str) -> list[int]:
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        return tokenizer.encode(tokenizer.apply_chat_template(turns), add_special_tokens=False)

    found = []
    for number in range(contexts or bench.suite.contexts):
        for draw in DRAWN[bench.suite.name]:
            rng = Random(f"later questions {draw.__name__} {bench.seed} {number}")
            context, asked = draw(rng, count)
            (first, answer, score), *others = asked
            begin = f"{context}\n{first}"
            prompts = [(encode(begin), score)]
            prompts += [(encode(begin, answer, later), each) for later, _, each in others]
            longest = max(len(tokens) for tokens, _ in prompts) + ANSWER_TOKENS
            if longest > engine.max_model_len:
                raise ConfigError(
                    f"questions about a context take {longest} tokens, and the context of this "
                    f"engine has {engine.max_model_len}; raise max_model_len."
                )
            found.append(Conversation(prompts, len(prompts[0][0])))
    return found


Asked = tuple[str, str, Score]
"""A question, an answer to it as it stands before later questions, and what scores answers."""


def _recall(rng: Random, count: Count) -> tuple[str, list[Asked]]:
    facts = recall.draw_facts(rng, RECALL_TOKENS, count)
    keys = rng.sample(list(facts), QUESTIONS)
    return recall.describe_facts(facts), [
        _exactly(recall.question(key), recall.line(key, facts[key])) for key in keys
    ]


def _documents(rng: Random, count: Count) -> tuple[str, list[Asked]]:
    people = draw_people(rng, DOCUMENTS)
    asked: dict[str, str] = {}
    while len(asked) < QUESTIONS:
        question, answer = draw_question(rng, people, hops=1)
        asked[question] = answer
    return describe_people(people), [_exactly(*each) for each in asked.items()]


def _exactly(question: str, answer: str) -> Asked:
    item = Item("later questions", (), None, answer, ANSWER_TOKENS, "")
    return question, answer, partial(is_answer, item)


def _needles(rng: Random, count: Count) -> tuple[str, list[Asked]]:
    hidden = draw_hidden(rng, QUESTIONS)
    parts = draw_prose(rng, RECALL_TOKENS, count)
    for number, each in reversed(list(enumerate(hidden))):
        parts.insert(int((number + rng.random()) * len(parts) / QUESTIONS), each.sentence)
    asked = [_saying(each.question, each.sentence, each.word) for each in hidden]
    return "\n\n".join(parts), rng.sample(asked, QUESTIONS)


def _people(rng: Random, count: Count) -> tuple[str, list[Asked]]:
    people = draw_documents(rng, DOCUMENTS)
    every = [pair for person in people for pair in person.asked]
    asked = [_saying(question, word, word) for question, word in rng.sample(every, QUESTIONS)]
    return "\n\n".join(person.text for person in people), asked


def _saying(question: str, answer: str, word: str) -> Asked:
    return question, answer, partial(_said, word)


def _said(word: str, completion: str) -> float:
    return float(says(completion, word, ()))


DRAWN: Mapping[str, tuple[Callable[[Random, Count], tuple[str, list[Asked]]], ...]] = {
    "lab": (_recall, _documents),
    "English": (_needles, _people),
}
"""Of each suite, what contexts are made of."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How right first questions were answered, and later ones."""

    first: list[float]
    later: list[float]

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of right answers to both."""
        return fmean(self.first), fmean(self.later)


def note(row: Row, before: Answers, after: Answers) -> None:
    """Note in a row what a rule changes: of all questions, and of later ones."""
    row.compare_answers(before.first, after.first)
    row.later_scores = fmean(before.later), fmean(after.later)
    row.later_interval = paired_difference(before.later, after.later)


def score(engine: Engine, asked: list[Conversation], asks: Asks | None) -> Answers:
    """How right questions are answered by requests that ask so; None for nothing."""
    queries = [
        Query(
            tokens,
            ANSWER_TOKENS,
            {} if asks is None else make_asks(asks(each.first_tokens)),
            right,
        )
        for each in asked
        for tokens, right in each.prompts
    ]
    scores = ask(engine, queries, asks is not None, at_once=QUESTIONS).scores
    later = [value for number, value in enumerate(scores) if number % QUESTIONS]
    return Answers(scores[::QUESTIONS], later)
