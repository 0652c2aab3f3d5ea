"""Rows that teach skills: short exercises packed one after the other, with loss on the answers.

The exercises are those of `ockham.lab.tasks`, of the train split, asked more densely: several
questions about one list or one set of documents. Beside them stand random tokens that are repeated
(which only copying predicts) and windows of the corpus (so that its language is not forgotten).
Every row is a pure function of (seed, phase, row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ockham.lab.tasks import TASKS, parts
from ockham.lab.tasks.documents import describe_people, draw_people, draw_question
from ockham.lab.tasks.item import belongs_to
from ockham.lab.tasks.recall import describe_facts, draw_facts, line, question
from recipes.lab.data import Batches, Tokens
from recipes.lab.sentences import sentence
from recipes.lab.tokenizer import END_OF_TEXT, SPECIAL_TOKENS

Turn = tuple[str, str]
Exercise = tuple[list[int], list[float]]
"""Token ids, and the weight of predicting each."""

# The sources of a cycle of rows.
MIXTURES = {
    "copying": {
        "repeat": 1,
        "recall": 6,
        "edit": 4,
        "documents": 4,
        "steps": 2,
        "chat": 1,
        "text": 2,
    },
    "skills": {
        "repeat": 1,
        "recall": 4,
        "edit": 4,
        "documents": 4,
        "steps": 3,
        "chat": 1,
        "text": 3,
    },
    "practice": {
        "repeat": 1,
        "recall": 3,
        "edit": 5,
        "documents": 4,
        "steps": 4,
        "chat": 1,
        "text": 6,
    },
    "steps": {"steps": 18, "text": 2},
    "long_steps": {"long_steps": 18, "text": 2},
    "sentences": {"sentences": 18, "text": 2},
    "threads": {"threads": 9, "parts": 9, "text": 2},
    "long": {"repeat": 1, "recall": 8, "edit": 3, "documents": 3, "steps": 1, "chat": 1, "text": 3},
    "reading": {
        "lines": 6,
        "recall": 2,
        "edit": 6,
        "documents": 2,
        "steps": 2,
        "chat": 1,
        "text": 5,
    },
    "editing": {
        "lines": 4,
        "recall": 2,
        "edit": 12,
        "documents": 2,
        "steps": 2,
        "chat": 1,
        "text": 5,
    },
    "far": {
        "lines": 9,
        "recall": 4,
        "edit": 3,
        "documents": 2,
        "steps": 1,
        "chat": 1,
        "text": 4,
    },
}
_PROMPT_WEIGHT = 0.02
"""What a prompt's tokens count beside an answer's: most of them are drawn at random."""


class SkillBatches:
    """The batches of one phase of a skills mixture."""

    def __init__(
        self,
        streams: dict[str, Tokens],
        tokenizer: Tokenizer,
        seed: int,
        phase: int,
        context: int,
        mixture: str,
    ) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._seed = f"{seed} {phase}"
        self._texts = Batches(streams, seed, phase, context, "library")
        self._slots = [source for source, rows in MIXTURES[mixture].items() for _ in range(rows)]
        Random(self._seed).shuffle(self._slots)
        self._first_ordinary = len(SPECIAL_TOKENS)
        self._vocabulary = tokenizer.get_vocab_size()
        self._end: Any = tokenizer.token_to_id(END_OF_TEXT)
        self._exercises: dict[str, Callable[[Random], Exercise]] = {
            "repeat": self._repeat,
            "recall": self._recall,
            "lines": self._lines,
            "documents": self._documents,
            "sentences": self._sentences,
            "threads": self._threads,
        }

    def batch(self, step: int, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Token ids (rows, context + 1), and for each but the first the weight of its loss."""
        pairs = [self._row(row) for row in range(step * rows, (step + 1) * rows)]
        return (
            np.stack([ids for ids, _ in pairs]).astype(np.int64),
            np.stack([weights for _, weights in pairs]).astype(np.float32),
        )

    def _row(self, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        source = self._slots[row % len(self._slots)]
        rng = Random(f"{self._seed} {row}")
        if source == "text":
            return self._texts.window(row).astype(np.int64), np.ones(self._context, np.float32)
        ids_of_row: list[int] = []
        weights: list[float] = []
        while len(ids_of_row) <= self._context:
            ids, exercise_weights = self._exercise(source, rng)
            ids_of_row += ids
            weights += exercise_weights
        length = self._context + 1
        return np.array(ids_of_row[:length]), np.array(weights[1:length], np.float32)

    def _exercise(self, source: str, rng: Random) -> Exercise:
        if source in self._exercises:
            return self._exercises[source](rng)
        item = TASKS[source].item(rng.randrange(1 << 30), rng.randrange(1 << 30), "train")
        contents = [message["content"] for message in item.messages] + [item.answer]
        return self._chat(list(zip(contents[::2], contents[1::2], strict=True)))

    def _repeat(self, rng: Random) -> Exercise:
        """A run of random tokens, two to four times; only the repetitions count."""
        length = int(2 ** rng.uniform(2, np.log2(max(8, self._context // 3))))
        tokens = [rng.randrange(self._first_ordinary, self._vocabulary) for _ in range(length)]
        times = rng.randrange(2, 5)
        ids = [*(tokens * times), self._end]
        return ids, [0.0] * length + [1.0] * (length * (times - 1)) + [0.0]

    def _recall(self, rng: Random, answer: Callable[[str, str], str] = line) -> Exercise:
        """A list, and questions for up to twelve of its keys."""
        room = self._context - 40
        tokens = int(2 ** rng.uniform(5, np.log2(max(64, room))))
        facts = draw_facts(rng, tokens, self._count)
        keys = [key for key in facts if belongs_to("train", key, facts[key])]
        rng.shuffle(keys)
        turns = [(question(key), answer(key, facts[key])) for key in keys[: rng.randrange(2, 13)]]
        return self._asked(describe_facts(facts), turns)

    def _lines(self, rng: Random) -> Exercise:
        """A list, and all of its lines once more in another order: what a question for one of them
        teaches, of which this has several times as many in as many tokens. Only the words count,
        as nothing tells which key comes next. Half of the lists are as long as fits."""
        longest = 0.9 * self._context
        tokens = int(rng.choice((rng.uniform(0.2, 1) * longest, longest ** rng.uniform(0.6, 1))))
        facts = draw_facts(rng, tokens, self._count)
        ids = self._tokenizer.encode(describe_facts(facts)).ids
        weights = [_PROMPT_WEIGHT] * len(ids)
        keys = [key for key in facts if belongs_to("train", key, facts[key])]
        rng.shuffle(keys)
        for key in keys:
            asked, word = (
                self._tokenizer.encode(part).ids for part in (f"- {key}:", f" {facts[key]}\n")
            )
            ids += [*asked, *word]
            weights += [_PROMPT_WEIGHT] * len(asked) + [1.0] * len(word)
        return [*ids, self._end], [*weights, 0.0]

    def _sentences(self, rng: Random) -> Exercise:
        """The same, answered in another form."""
        return self._recall(rng, sentence)

    def _threads(self, rng: Random) -> Exercise:
        """Parts that threads do: the text that spawns them and goes on with what they give back,
        and the texts of two threads. What the engine writes does not count."""
        drawn = parts.draw_parts(rng, rng.randrange(2, 5), "train")
        asked = " ".join(part.problem for part in drawn) + parts.ASKED
        end = ("<|im_end|>", 1.0)
        texts = [[(parts.returned(drawn), 0.0), (parts.answer(drawn), 1.0), end]]
        texts += [
            [(f"{parts.WORK}{part.problem}\n", 0.0), (part.work, 1.0)]
            for part in rng.sample(drawn, 2)
        ]
        ids: list[int] = []
        weights: list[float] = []
        for number, text in enumerate(texts):
            opening = (_turn(asked), _PROMPT_WEIGHT), (parts.spawning(drawn), float(not number))
            for piece, weight in (*opening, *text):
                tokens = self._tokenizer.encode(piece).ids
                ids += tokens
                weights += [weight] * len(tokens)
            ids.append(self._end)
            weights.append(0.0)
        return ids, weights

    def _documents(self, rng: Random) -> Exercise:
        """Documents, and up to six questions about them."""
        people = draw_people(rng, rng.randrange(2, max(3, min(10, self._context // 50))))
        turns = [draw_question(rng, people, rng.choice((1, 1, 2))) for _ in range(6)]
        turns = [turn for turn in turns if belongs_to("train", *turn)]
        return self._asked(describe_people(people), turns)

    def _asked(self, text: str, turns: list[Turn]) -> Exercise:
        """The text stands in the first turn."""
        if not turns:
            return [self._end], [0.0]
        (first, answer), *others = turns
        return self._chat([(f"{text}\n{first}", answer), *others])

    def _chat(self, turns: list[Turn]) -> Exercise:
        """As the chat template renders it; each answer counts, with the end of its turn."""
        ids: list[int] = []
        weights: list[float] = []
        for piece, weight in self._pieces(turns):
            tokens = self._tokenizer.encode(piece).ids
            ids += tokens
            weights += [weight] * len(tokens)
        return [*ids, self._end], [*weights, 0.0]

    @staticmethod
    def _pieces(turns: list[Turn]) -> Iterator[tuple[str, float]]:
        for asked, answer in turns:
            yield _turn(asked), _PROMPT_WEIGHT
            yield f"{answer}<|im_end|>", 1.0
            yield "\n", 0.0

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)


def _turn(asked: str) -> str:
    """A user's turn, and the beginning of the answer."""
    return f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
