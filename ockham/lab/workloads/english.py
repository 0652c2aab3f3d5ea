"""The workloads `chat`, `agents`, `documents` and `edit` in English prose: what is asked, and the
recorded answers, are made of Python's documentation, so that words and phrases repeat as they do in
real text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from ockham.lab.tasks.documentation import paragraphs, sentences
from ockham.lab.tasks.edits import draw_edit
from ockham.lab.tasks.vocabulary import NOUNS
from ockham.lab.workloads.contexts import retrieved
from ockham.lab.workloads.kinds import Workload, workload
from ockham.lab.workloads.request import Message, Request

_WORD = re.compile(r"\b[a-z]{6,}\b")
_TOOLS = (
    ("look_up", "Find the paragraphs of the manual that have a word.", "word"),
    ("next_paragraph", "Read what follows the paragraph that was found.", "number"),
    ("list_words", "List the words that a paragraph has in common with another.", "paragraph"),
    ("take_note", "Keep a sentence for the final answer.", "sentence"),
    ("finish", "Give the final answer to the user.", "answer"),
)
_SYSTEM = (
    "You answer questions about the manual below. Use its own words, and say only what it says. If "
    "the manual says nothing about a question, say so."
)
_AGENT = (
    "You answer questions by calling tools. Write one call as JSON with the keys tool and "
    "arguments, and nothing else. You will be given the result."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A word that a paragraph has, and the sentences of it that have the word."""

    word: str
    paragraph: str
    answer: str

    @property
    def question(self) -> str:
        return f"What does the manual say about the word {self.word}?"


def ask_about(rng: Random, texts: Sequence[str]) -> Asked:
    """A question that one of these paragraphs answers."""
    while True:
        paragraph = rng.choice(texts)
        words = sorted(set(_WORD.findall(paragraph)))
        if words:
            break
    word = rng.choice(words)
    found = [each for each in sentences(paragraph) if word in each.split()]
    return Asked(word, paragraph, " ".join(found or [paragraph]))


@workload
class ChatEnglish(Workload):
    """Conversations about one manual, which stands in the system prompt of all."""

    name: ClassVar[str] = "chat-english"

    sessions: int = 16
    turns: int = 4
    manual_paragraphs: int = 8
    max_tokens: int = 64

    def _requests(self, rng: Random) -> Iterator[Request]:
        manual = rng.sample(paragraphs(), min(self.manual_paragraphs, len(paragraphs())))
        told = "\n\n".join((_SYSTEM, *manual))
        for session in range(self.sessions):
            for turn in range(self.turns):
                asked = ask_about(rng, manual)
                said: Message = {"role": "user", "content": asked.question}
                system: Message = {"role": "system", "content": told}
                yield Request(
                    id=f"chat-english-{session}-{turn}",
                    arrival_s=rng.expovariate(1.0) if turn else 0.0,  # reading and typing
                    after=f"chat-english-{session}-{turn - 1}" if turn else None,
                    messages=[said] if turn else [system, said],
                    max_tokens=self.max_tokens,
                    answer=f"The manual says: {asked.answer}",
                )


@workload
class AgentsEnglish(Workload):
    """Tool loops over a manual: calls as JSON, paragraphs as results, and a final answer."""

    name: ClassVar[str] = "agents-english"

    sessions: int = 8
    calls: int = 6
    result_paragraphs: int = 2
    max_tokens: int = 64

    def _requests(self, rng: Random) -> Iterator[Request]:
        tools = "\n".join(
            json.dumps({"tool": name, "description": what, "arguments": {argument: "string"}})
            for name, what, argument in _TOOLS
        )
        system: Message = {"role": "system", "content": f"{_AGENT}\n{tools}"}
        for session in range(self.sessions):
            asked, notes = ask_about(rng, paragraphs()), list[str]()
            text = f"{asked.question} Compare it with other paragraphs."
            for call in range(self.calls):
                said: Message = {"role": "user", "content": text}
                last = call == self.calls - 1
                answer = " ".join(notes) or asked.answer
                tool, argument = ("finish", answer) if last else ("look_up", asked.word)
                name = {"finish": "answer", "look_up": "word"}[tool]
                yield Request(
                    id=f"agents-english-{session}-{call}",
                    arrival_s=rng.uniform(0.01, 0.2) if call else 0.0,  # the tool runs
                    after=f"agents-english-{session}-{call - 1}" if call else None,
                    messages=[said] if call else [system, said],
                    max_tokens=self.max_tokens,
                    answer=json.dumps({"tool": tool, "arguments": {name: argument}}),
                )
                others = rng.sample(paragraphs(), max(0, self.result_paragraphs - 1))
                text = "Result: " + "\n\n".join([asked.paragraph, *others])
                notes = [*notes, asked.answer][-2:]
                asked = ask_about(rng, [asked.paragraph, *others])


@workload
class DocumentsEnglish(Workload):
    """Questions over retrieved documents: the same documents return, in another order.

    A few documents are asked for much more often than the others, as in real collections.
    """

    name: ClassVar[str] = "documents-english"

    queries: int = 48
    collection: int = 24
    per_query: int = 4
    paragraphs: int = 3
    max_tokens: int = 48

    def _requests(self, rng: Random) -> Iterator[Request]:
        every = paragraphs()
        collection = [
            [every[(start + number) % len(every)] for number in range(self.paragraphs)]
            for start in rng.choices(range(len(every)), k=self.collection)
        ]
        for query in range(self.queries):
            found = retrieved(rng, self.collection, self.per_query)
            texts = "\n\n".join(f"Document {d}: {' '.join(collection[d])}" for d in found)
            asked = ask_about(rng, collection[rng.choice(found)])
            yield Request(
                id=f"documents-english-{query}",
                messages=[{"role": "user", "content": f"{texts}\n\n{asked.question}"}],
                max_tokens=self.max_tokens,
                answer=f"The manual says: {asked.answer}",
            )


@workload
class EditEnglish(Workload):
    """Several paragraphs and an instruction to change one thing: most of the answer is a copy."""

    name: ClassVar[str] = "edit-english"

    prompts: int = 32
    text_paragraphs: int = 3
    max_tokens: int = 384

    def _requests(self, rng: Random) -> Iterator[Request]:
        for number in range(self.prompts):
            start = rng.randrange(len(paragraphs()))
            texts = [
                paragraphs()[(start + place) % len(paragraphs())]
                for place in range(self.text_paragraphs)
            ]
            asked, changed = _change(rng, texts)
            text = "\n\n".join(texts)
            yield Request(
                id=f"edit-english-{number}",
                messages=[{"role": "user", "content": f"{asked}\n\n{text}"}],
                max_tokens=self.max_tokens,
                answer=changed,
            )


def _change(rng: Random, texts: Sequence[str]) -> tuple[str, str]:
    """An instruction for the whole of a text, and the text after it."""
    text = "\n\n".join(texts)
    if rng.random() < 0.5:
        old = ask_about(rng, texts).word
        new = rng.choice([noun for noun in NOUNS if noun not in text])
        changed = re.sub(rf"\b{old}\b", new, text)
        return f"Rewrite the text below with {new} in place of {old}.", changed
    _, sentence, _ = draw_edit(rng, "quote", "train")
    place = rng.randrange(len(texts) + 1)
    changed = "\n\n".join([*texts[:place], sentence, *texts[place:]])
    where = f"after paragraph {place}" if place else "in front of all others"
    return f"Add this paragraph {where}: {sentence}\nWrite the whole text.", changed
