"""`long_steps`: calculations that are checked again and again before they are answered."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, level_of
from ockham.lab.tasks.steps import MARK

RESULT = "Result:"
"""What the outcome of each pass stands behind."""
CHECK = "Check:"
"""The line that begins a pass after the first."""
PASSES = 4
FINAL = f"\n{MARK}"
"""What a text goes on with that is to give its answer at once."""


class LongSteps:
    """Calculations that are done four times, forwards and backwards in turn, as reasoning models
    check what they know already: answers of 90 to 400 tokens whose end seldom changes anything."""

    name: ClassVar[str] = "long_steps"
    summary: ClassVar[str] = "a calculation, done four times, and its result"
    levels: ClassVar[tuple[str, ...]] = (
        "add, digits=4",
        "add, digits=6",
        "sum, terms=4",
        "sum, terms=6",
        "multiply, digits=3",
        "count, items=10",
        "sort, items=5",
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
        rng = draw(self.name, seed, index, split)
        kind, _, size = level.partition(", ")
        while True:
            problem, result, forwards, backwards = calculation(
                rng, kind, int(size.partition("=")[2])
            )
            if belongs_to(split, problem):
                break
        lines = []
        for number in range(PASSES):
            lines += [CHECK] if number else []
            lines += [*(backwards if number % 2 else forwards), f"{RESULT} {result}"]
        return Item(
            task=self.name,
            messages=({"role": "user", "content": f"{problem} Check it three times."},),
            text=None,
            answer="\n".join([*lines, f"{MARK} {result}"]),
            max_tokens=500,
            level=level,
            fields={"result": result},
        )

    def score(self, item: Item, completion: str) -> float:
        """Only what stands behind the last mark counts."""
        _, mark, result = completion.rpartition(MARK)
        return float(bool(mark) and result.strip() == item.fields["result"])


Problem = tuple[str, str, list[str], list[str]]
"""What is asked, its result, and the steps of a pass forwards and of one backwards."""


def calculation(rng: Random, kind: str, size: int) -> Problem:
    """A calculation of a kind: "add", "sum", "multiply", "count" or "sort"."""
    return _KINDS[kind](rng, size)


def _add(rng: Random, digits: int) -> Problem:
    one, two = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return f"Add {one} and {two}.", str(one + two), _columns(one, two), _columns(two, one)


def _columns(one: int, two: int) -> list[str]:
    """Column by column, from the right: "7+5+0=12"."""
    steps, carry = [], 0
    for a, b in zip(str(one)[::-1], str(two)[::-1], strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}+{carry}={total}")
        carry = total // 10
    return steps


def _sum(rng: Random, terms: int) -> Problem:
    numbers = [rng.randrange(10, 100) for _ in range(terms)]
    listed = " ".join(map(str, numbers))
    return f"Sum {listed}.", str(sum(numbers)), _running(numbers), _running(numbers[::-1])


def _running(numbers: list[int]) -> list[str]:
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return steps


def _multiply(rng: Random, digits: int) -> Problem:
    number, factor = rng.randrange(10 ** (digits - 1), 10**digits), rng.randrange(2, 10)
    parts = [
        (int(digit) * 10**place, int(digit) * 10**place * factor)
        for place, digit in enumerate(str(number)[::-1])
    ]
    both = [_products(each, factor) for each in (parts, parts[::-1])]
    return f"Multiply {number} by {factor}.", str(number * factor), both[0], both[1]


def _products(parts: list[tuple[int, int]], factor: int) -> list[str]:
    """Part by part, and each product added to those before it."""
    steps, total = [], 0
    for number, (part, product) in enumerate(parts):
        steps.append(f"{part}*{factor}={product}")
        if number:
            steps.append(f"{total}+{product}={total + product}")
        total += product
    return steps


def _count(rng: Random, items: int) -> Problem:
    kinds = rng.sample("abcdefgh", 3)
    row = [rng.choice(kinds) for _ in range(items)]
    asked = rng.choice(kinds)
    both = [_tallied(each, asked) for each in (row, row[::-1])]
    return f"Count {asked} in {' '.join(row)}.", str(row.count(asked)), both[0], both[1]


def _tallied(row: list[str], asked: str) -> list[str]:
    steps, seen = [], 0
    for item in row:
        seen += item == asked
        steps.append(f"{item} {seen}")
    return steps


def _sort(rng: Random, items: int) -> Problem:
    numbers = rng.sample(range(10, 100), items)
    both = [_taken(numbers, each) for each in (min, max)]
    ordered = " ".join(map(str, sorted(numbers)))
    return f"Sort {' '.join(map(str, numbers))}.", ordered, both[0], both[1]


def _taken(numbers: list[int], which: Callable[[list[int]], int]) -> list[str]:
    """One after the other, the smallest or the largest of those that are left."""
    rest, steps = list(numbers), []
    while rest:
        taken = which(rest)
        rest.remove(taken)
        steps.append(f"{taken} from {' '.join(map(str, rest))}".removesuffix(" from "))
    return steps


_KINDS: dict[str, Callable[[Random, int], Problem]] = {
    "add": _add,
    "sum": _sum,
    "multiply": _multiply,
    "count": _count,
    "sort": _sort,
}
