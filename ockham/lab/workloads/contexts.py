"""Single requests whose prompts share text: `documents`, `batch`, `samples`, `long`, `edit`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar

from ockham.lab.tasks import TASKS, Task
from ockham.lab.workloads.kinds import Workload, workload
from ockham.lab.workloads.request import Message, Request
from ockham.lab.workloads.words import function, paragraph, question


def retrieved(rng: Random, collection: int, wanted: int) -> list[int]:
    """So many documents of a collection, by number, each once. A few are asked for much more often
    than the others, as in real collections: the one of rank n as often as 1 / n."""
    popularity = [1 / (rank + 1) for rank in range(collection)]
    found: list[int] = []
    while len(found) < min(wanted, collection):
        (document,) = rng.choices(range(collection), popularity)
        if document not in found:
            found.append(document)
    return found


@workload
class Documents(Workload):
    """Questions over retrieved documents: the same documents return, in another order.

    A few documents are asked for much more often than the others, as in real collections.
    """

    name: ClassVar[str] = "documents"

    queries: int = 48
    collection: int = 24
    per_query: int = 4
    sentences: int = 12
    max_tokens: int = 32

    def _requests(self, rng: Random) -> Iterator[Request]:
        documents = [paragraph(rng, self.sentences) for _ in range(self.collection)]
        for query in range(self.queries):
            found = retrieved(rng, self.collection, self.per_query)
            texts = "\n\n".join(f"Document {d}: {documents[d]}" for d in found)
            yield Request(
                id=f"documents-{query}",
                messages=[{"role": "user", "content": f"{texts}\n\n{question(rng)}"}],
                max_tokens=self.max_tokens,
            )


@workload
class Batch(Workload):
    """An offline job: many short questions under a few long instructions, in no order."""

    name: ClassVar[str] = "batch"

    prompts: int = 2000
    prefixes: int = 4
    prefix_sentences: int = 40
    max_tokens: int = 8

    def _requests(self, rng: Random) -> Iterator[Request]:
        prefixes = [paragraph(rng, self.prefix_sentences) for _ in range(self.prefixes)]
        for number in range(self.prompts):
            yield Request(
                id=f"batch-{number}",
                prompt=f"{rng.choice(prefixes)}\n\nQuestion: {question(rng)}\nAnswer:",
                max_tokens=self.max_tokens,
            )


@workload
class Long(Workload):
    """Few prompts that are long, each followed by a longer answer."""

    name: ClassVar[str] = "long"

    prompts: int = 4
    sentences: int = 80
    max_tokens: int = 128

    def _requests(self, rng: Random) -> Iterator[Request]:
        for number in range(self.prompts):
            yield Request(
                id=f"long-{number}",
                prompt=f"{paragraph(rng, self.sentences)}\n\n{question(rng)}\n",
                max_tokens=self.max_tokens,
            )


@workload
class Samples(Workload):
    """Several answers to each problem, sampled: the items of the task `steps`."""

    name: ClassVar[str] = "samples"

    prompts: int = 16
    n: int = 8
    max_tokens: int = 64

    def _requests(self, rng: Random) -> Iterator[Request]:
        seed = rng.randrange(1 << 30)
        for number in range(self.prompts):
            yield Request(
                id=f"samples-{number}",
                messages=_asked(TASKS["steps"], seed, number),
                max_tokens=self.max_tokens,
                n=self.n,
                temperature=1.0,
            )


@workload
class Edit(Workload):
    """Code and an instruction to change it: the items of the task `edit`."""

    name: ClassVar[str] = "edit"

    prompts: int = 32
    max_tokens: int = 256

    def _requests(self, rng: Random) -> Iterator[Request]:
        seed = rng.randrange(1 << 30)
        for number in range(self.prompts):
            yield Request(
                id=f"edit-{number}",
                messages=_asked(TASKS["edit"], seed, number),
                max_tokens=self.max_tokens,
            )


@workload
class Typing(Workload):
    """Files edited keystroke by keystroke; a completion is asked for at each pause.

    The prompt is the file up to the cursor. Most pauses come while a new function is typed at the
    end; before every fifth one a character in the middle of the text above was changed.
    """

    name: ClassVar[str] = "typing"

    sessions: int = 2
    pauses: int = 40
    functions_above: int = 12
    keystrokes: int = 5
    max_tokens: int = 16

    def _requests(self, rng: Random) -> Iterator[Request]:
        for session in range(self.sessions):
            above = "\n\n".join(function(rng) for _ in range(self.functions_above)) + "\n\n"
            text, typed = function(rng, 10), 0
            for pause in range(self.pauses):
                struck = rng.randrange(1, 2 * self.keystrokes)
                typed += struck
                if typed >= len(text):
                    above, text, typed = f"{above}{text}\n\n", function(rng, 10), 1
                if pause % 5 == 4:
                    above = _with_another_digit(above, rng)
                yield Request(
                    id=f"typing-{session}-{pause}",
                    arrival_s=0.1 * struck if pause else 0.0,
                    after=f"typing-{session}-{pause - 1}" if pause else None,
                    prompt=above + text[:typed],
                    max_tokens=self.max_tokens,
                )


def _with_another_digit(text: str, rng: Random) -> str:
    """The text with one of its digits changed."""
    at = rng.choice([index for index, character in enumerate(text) if character.isdigit()])
    digit = rng.choice([d for d in "0123456789" if d != text[at]])
    return text[:at] + digit + text[at + 1 :]


def _asked(task: Task, seed: int, index: int) -> list[Message]:
    return [
        {"role": message["role"], "content": message["content"]}
        for message in task.item(seed, index, "test").messages
    ]
