"""Five questions about one context: the first, and four over the state that the first one left.

A rule that drops cells chooses them by what it knows then. SCBench (Li et al. 2024,
arXiv:2412.10319) found that rules which do well on the first question fail from the second on. So
cells are dropped at the end of the first question, and later questions are asked of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from ockham.core.errors import ConfigError
from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.lab.returning import Query, ask
from ockham.lab.tasks import recall
from ockham.lab.tasks.documents import describe_people, draw_people, draw_question
from ockham.lab.tasks.item import Count, Item, is_answer

QUESTIONS = 5
RECALL_TOKENS, DOCUMENTS = 400, 8
CONTEXTS = 10
"""Of each of the two tasks."""
ANSWER_TOKENS = 64

Asks = Callable[[int], Mapping[str, Any]]
"""What is asked of a request whose first question ends with so many tokens."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Prompts of one context, each with its right answer: the first question, and the others, which
    follow the first and its answer. `first_tokens` is how many tokens the first prompt has."""

    prompts: list[tuple[list[int], str]]
    first_tokens: int


def conversations(engine: Engine, seed: int) -> list[Conversation]:
    """Contexts of the tasks `recall` and `documents`. Raises ConfigError where the model has no
    tokenizer, or its context no room for them."""
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
    for number in range(CONTEXTS):
        for draw in (_recall, _documents):
            rng = Random(f"later questions {draw.__name__} {seed} {number}")
            context, asked = draw(rng, count)
            (first, answer), *others = asked
            begin = f"{context}\n{first}"
            prompts = [(encode(begin), answer)]
            prompts += [(encode(begin, answer, later), right) for later, right in others]
            longest = max(len(tokens) for tokens, _ in prompts) + ANSWER_TOKENS
            if longest > engine.max_model_len:
                raise ConfigError(
                    f"questions about a context take {longest} tokens, and the context of this "
                    f"engine has {engine.max_model_len}; raise max_model_len."
                )
            found.append(Conversation(prompts, len(prompts[0][0])))
    return found


def _recall(rng: Random, count: Count) -> tuple[str, list[tuple[str, str]]]:
    facts = recall.draw_facts(rng, RECALL_TOKENS, count)
    keys = rng.sample(list(facts), QUESTIONS)
    return recall.describe_facts(facts), [
        (recall.question(key), recall.line(key, facts[key])) for key in keys
    ]


def _documents(rng: Random, count: Count) -> tuple[str, list[tuple[str, str]]]:
    people = draw_people(rng, DOCUMENTS)
    asked: dict[str, str] = {}
    while len(asked) < QUESTIONS:
        question, answer = draw_question(rng, people, hops=1)
        asked[question] = answer
    return describe_people(people), list(asked.items())


def score(engine: Engine, asked: list[Conversation], asks: Asks | None) -> tuple[float, float]:
    """The shares of right answers to first questions, and to later ones, of requests that ask so;
    None for nothing."""
    queries = [
        Query(
            tokens,
            ANSWER_TOKENS,
            {} if asks is None else make_asks(asks(each.first_tokens)),
            partial(is_answer, _item(answer)),
        )
        for each in asked
        for tokens, answer in each.prompts
    ]
    scores = ask(engine, queries, asks is not None, at_once=QUESTIONS).scores
    first = scores[::QUESTIONS]
    later = [value for number, value in enumerate(scores) if number % QUESTIONS]
    return math.fsum(first) / len(first), math.fsum(later) / len(later)


def _item(answer: str) -> Item:
    return Item("later questions", (), None, answer, ANSWER_TOKENS, "")
