"""`parts`: several calculations that have nothing to do with each other, and their results."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, level_of
from ockham.lab.tasks.long_steps import CHECK, RESULT, calculation
from ockham.lab.tasks.steps import MARK

ASKED = " Use threads."
"""What a problem ends with whose parts are to be done by threads."""
SPAWN, BEGIN = "Threads:\n", "Begin.\n"
"""What stands before and after the problems, one a line, that threads are to do."""
WORK, DONE = "Work: ", "Done."
"""What stands before the problem of a part, and after its calculation."""
THREADS = {
    "spawn": SPAWN,
    "close": BEGIN,
    "open": f"{WORK}{{text}}\n",
    "join": DONE,
    "returns": f"{RESULT} ",
    "back": f"{RESULT} {{text}}\n",
    "go_on": "",
}
"""The settings of a search by which a text that is asked for threads has them."""
_KINDS = (("add", 4), ("add", 6), ("count", 10), ("sort", 5))


@dataclass(frozen=True, slots=True)
class Part:
    """One calculation: the problem, the text that does it, and its result."""

    problem: str
    work: str
    result: str


class Parts:
    """Two to four calculations, each done twice, whose results stand in the answer in their order.
    Levels of parts ask for one text that does one after the other, levels of threads ask for
    threads, of the same problems: see `ockham.search.threads`."""

    name: ClassVar[str] = "parts"
    summary: ClassVar[str] = "several calculations that do not need each other, and their results"
    levels: ClassVar[tuple[str, ...]] = (
        *("parts=2", "parts=3", "parts=4"),
        *("threads=2", "threads=3", "threads=4"),
    )

    def item(
        self,
        seed: int,
        index: int,
        split: Split,
        level: str | None = None,
        count: Count | None = None,
    ) -> Item:
        """See `Task`."""
        level = level_of(self, index, level)
        kind, _, number = level.partition("=")
        parts = draw_parts(draw(self.name, seed, index, split), int(number), split)
        asked, work = " ".join(part.problem for part in parts), spawning(parts) + returned(parts)
        if kind == "parts":
            work = "".join(f"{WORK}{part.problem}\n{part.work}\n" for part in parts)
        else:
            asked += ASKED
        return Item(
            task=self.name,
            messages=({"role": "user", "content": asked},),
            text=None,
            answer=work + answer(parts),
            max_tokens=900,
            level=level,
            fields={"result": "; ".join(part.result for part in parts)},
        )

    def score(self, item: Item, completion: str) -> float:
        """Only what stands behind the last mark counts."""
        _, mark, result = completion.rpartition(MARK)
        return float(bool(mark) and result.strip() == item.fields["result"])


def draw_parts(rng: Random, number: int, split: Split) -> list[Part]:
    """So many calculations."""
    parts = []
    for _ in range(number):
        kind, size = rng.choice(_KINDS)
        while True:
            problem, result, forwards, backwards = calculation(rng, kind, size)
            if belongs_to(split, problem):
                break
        outcome = f"{RESULT} {result}"
        lines = [*forwards, outcome, CHECK, *backwards, outcome, DONE]
        parts.append(Part(problem, "\n".join(lines), result))
    return parts


def spawning(parts: list[Part]) -> str:
    """What gives each part to a thread."""
    return SPAWN + "".join(f"{part.problem}\n" for part in parts) + BEGIN


def returned(parts: list[Part]) -> str:
    """What the threads give back."""
    return "".join(f"{RESULT} {part.result}\n" for part in parts)


def answer(parts: list[Part]) -> str:
    """The line that ends an answer."""
    return f"{MARK} {'; '.join(part.result for part in parts)}"
