"""One context and five questions about it, after SCBench (Li et al. 2024, arXiv:2412.10319): what
a technique keeps or looks at for the first question may be of no use to those that follow.

The questions are asked in three ways:

* `turns`: one after the other in a conversation, which goes on from its own state;
* `requests`: each by itself behind the context, from the state that was kept of the context before
  any question was known;
* `after`: the first with the context, the others each behind its answer, from the state that the
  first question left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from ockham.core.errors import ConfigError
from ockham.lab.tasks.documents import describe_people, draw_people, draw_question
from ockham.lab.tasks.edit import draw_change, draw_code
from ockham.lab.tasks.english import draw_hidden, write_report
from ockham.lab.tasks.item import Count, belongs_to, count_roughly
from ockham.lab.tasks.recall import describe_facts, draw_facts, draw_value, line, question
from ockham.lab.tasks.texts import held_out

WAYS = ("turns", "requests", "after")
TOKENS = (1000, 2000, 4000, 8000)
QUESTIONS = 5
LEVELS = tuple(f"{way}, tokens={tokens}" for way in WAYS for tokens in TOKENS)
_TALK_TOKENS = {"shared-edit": 500, "shared-summary": 360}
"""What the five questions take, with answers and what a chat template puts around them, about: a
context is shorter by that."""
_MOST_TALK_TOKENS = 300
"""The same in the other tasks."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and `words`: each that stands in the first `lines` lines of an answer counts
    the same."""

    text: str
    answer: str
    """A right answer, as the lab model should write it."""
    words: tuple[str, ...]
    max_tokens: int
    lines: int = 1

    def score(self, completion: str) -> float:
        """The share of the words that were found."""
        said = "\n".join(completion.strip().split("\n")[: self.lines])
        return sum(word in said for word in self.words) / len(self.words)


@dataclass(frozen=True, slots=True)
class Shared:
    """A context, and the questions about it."""

    context: str
    questions: tuple[Question, ...]


Draw = Callable[[Random, int, Count], Shared]


def shared(task: str, seed: int, index: int, tokens: int, count: Count | None = None) -> Shared:
    """The context number `index` of a task, which takes about so many tokens with all of its
    questions and answers: a pure function of the arguments.

    Raises ConfigError for an unknown task."""
    if task not in SHARED:
        raise ConfigError(f"there is no task {task!r}; there are {', '.join(SHARED)}.")
    rng = Random(f"{task} {seed} {index} {tokens}")
    room = tokens - _TALK_TOKENS.get(task, _MOST_TALK_TOKENS)
    return SHARED[task](rng, room, count or count_roughly)


def _recall(rng: Random, tokens: int, count: Count) -> Shared:
    """A list of keys and words; a key of each fifth of it is asked for, in any order."""
    facts = draw_facts(rng, tokens, count)
    keys, asked = list(facts), []
    for part in range(QUESTIONS):
        fifth = keys[part * len(keys) // QUESTIONS : (part + 1) * len(keys) // QUESTIONS]
        key = rng.choice([k for k in fifth if belongs_to("test", k, facts[k])] or fifth)
        while not belongs_to("test", key, facts[key]):
            facts[key] = draw_value(rng)
        asked.append(key)
    rng.shuffle(asked)
    return Shared(
        describe_facts(facts).rstrip("\n"),
        tuple(
            Question(question(key), line(key, facts[key]), (f": {facts[key]}",), 24)
            for key in asked
        ),
    )


def _documents(rng: Random, tokens: int, count: Count) -> Shared:
    """Documents about people, five of whom are asked about."""
    each = count(describe_people(draw_people(rng, 20))) // 20
    people = draw_people(rng, max(QUESTIONS, 5 * tokens // (4 * each)))
    while len(people) > QUESTIONS and count(describe_people(people)) > tokens:
        people = people[: -max(1, len(people) // 20)]
    asked = []
    for person in rng.sample(people, QUESTIONS):
        text, answer = draw_question(rng, people, 1, person)
        word = answer.rstrip(".").rpartition(" ")[2]
        asked.append(Question(text, answer, (word,), 48))
    return Shared(describe_people(people).rstrip("\n"), tuple(asked))


def _edit(rng: Random, tokens: int, count: Count) -> Shared:
    """A file of small functions; five of them are asked for with a change. Each right line counts
    the same."""
    functions: dict[str, list[str]] = {}
    spent = 0
    while True:
        code = draw_code(rng, rng.randrange(4, 7))
        name = code[0][4:].partition("(")[0]
        if name in functions:
            continue
        spent += count("\n".join(code) + "\n\n")
        if spent > tokens and len(functions) >= QUESTIONS:
            break
        functions[name] = code
    asked = []
    for name in rng.sample(list(functions), QUESTIONS):
        code = list(functions[name])
        instruction, edited = draw_change(rng, code, rng.choice(("rename", "insert", "delete")))
        text = f"{instruction[:-1]} in {name}."
        words = tuple(part.strip() for part in edited.split("\n"))
        asked.append(Question(text, edited, words, count(edited) + 16, lines=12))
    context = "\n\n".join("\n".join(code) for code in functions.values())
    return Shared(context, tuple(asked))


def _needles(rng: Random, tokens: int, count: Count) -> Shared:
    """Five sentences between the paragraphs of documentation."""
    hidden = draw_hidden(rng, QUESTIONS)
    room = tokens - sum(count(f"\n\n{each.sentence}") for each in hidden)
    passages = held_out()["prose"]
    start, parts, spent = rng.randrange(len(passages)), [], 0
    for number in range(len(passages)):
        for part in passages[(start + number) % len(passages)].split("\n\n"):
            spent += count(f"{part}\n\n")
            if spent > room:
                break
            parts.append(part)
        if spent > room:
            break
    total = len(parts)
    for number, each in reversed(list(enumerate(hidden))):
        parts.insert(int((number + rng.random()) * total / QUESTIONS), each.sentence)
    asked = rng.sample(hidden, QUESTIONS)
    return Shared(
        "\n\n".join(parts),
        tuple(Question(each.question, each.sentence, (each.word,), 32) for each in asked),
    )


def _summary(rng: Random, tokens: int, count: Count) -> Shared:
    """A report about four places, which the first question asks for, and four facts in it."""
    report = write_report(rng, tokens, QUESTIONS - 1, count)
    facts = rng.sample(report.hidden, QUESTIONS - 1)
    return Shared(
        report.text,
        (
            Question(report.question, ", ".join(report.places), report.places, 64, lines=12),
            *(Question(each.question, each.sentence, (each.word,), 32) for each in facts),
        ),
    )


SHARED: Mapping[str, Draw] = {
    "shared-recall": _recall,
    "shared-documents": _documents,
    "shared-edit": _edit,
    "shared-needles": _needles,
    "shared-summary": _summary,
}
"""Every task by its name."""
