"""`steps`: small calculations written out step by step, with a final answer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import ClassVar

from ockham.lab.tasks.item import Count, Item, Split, belongs_to, draw, level_of

MARK = "Answer:"
"""What the final answer stands behind."""


class Steps:
    """Arithmetic and small algorithms whose result a program checks: what search lives on."""

    name: ClassVar[str] = "steps"
    summary: ClassVar[str] = "a calculation in steps, and its result"
    levels: ClassVar[tuple[str, ...]] = (
        "add, digits=2",
        "add, digits=4",
        "sum, terms=4",
        "multiply, digits=2",
        "count, items=8",
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
            problem, steps, result = _KINDS[kind](rng, int(size.partition("=")[2]))
            if belongs_to(split, problem):
                break
        return Item(
            task=self.name,
            messages=({"role": "user", "content": problem},),
            text=None,
            answer="\n".join([*steps, f"{MARK} {result}"]),
            max_tokens=160,
            level=level,
            fields={"result": result},
        )

    def score(self, item: Item, completion: str) -> float:
        """Only the result counts: what stands behind the last mark."""
        _, mark, result = completion.rpartition(MARK)
        return float(bool(mark) and result.strip() == item.fields["result"])


Problem = tuple[str, list[str], str]


def _add(rng: Random, digits: int) -> Problem:
    one, two = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return f"Add {one} and {two}.", _addition(one, two), str(one + two)


def _addition(one: int, two: int) -> list[str]:
    """Column by column, from the right: "7+5+0=12"."""
    steps, carry = [], 0
    for a, b in zip(str(one)[::-1], str(two).zfill(len(str(one)))[::-1], strict=False):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}+{carry}={total}")
        carry = total // 10
    return steps


def _sum(rng: Random, terms: int) -> Problem:
    numbers = [rng.randrange(10, 100) for _ in range(terms)]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return f"Sum {' '.join(map(str, numbers))}.", steps, str(total)


def _multiply(rng: Random, digits: int) -> Problem:
    number, factor = rng.randrange(10 ** (digits - 1), 10**digits), rng.randrange(2, 10)
    parts = [
        (int(digit) * 10**place, int(digit) * 10**place * factor)
        for place, digit in enumerate(str(number)[::-1])
    ]
    steps = [f"{part}*{factor}={product}" for part, product in parts]
    steps.append(f"{'+'.join(str(product) for _, product in parts)}={number * factor}")
    return f"Multiply {number} by {factor}.", steps, str(number * factor)


def _count(rng: Random, items: int) -> Problem:
    kinds = rng.sample("abcdefgh", 3)
    row = [rng.choice(kinds) for _ in range(items)]
    asked, seen, steps = rng.choice(kinds), 0, []
    for item in row:
        seen += item == asked
        steps.append(f"{item} {seen}")
    return f"Count {asked} in {' '.join(row)}.", steps, str(seen)


def _sort(rng: Random, items: int) -> Problem:
    numbers = rng.sample(range(10, 100), items)
    rest, steps = list(numbers), []
    while rest:
        least = min(rest)
        rest.remove(least)
        steps.append(f"{least} from {' '.join(map(str, rest))}".removesuffix(" from "))
    ordered = " ".join(map(str, sorted(numbers)))
    return f"Sort {' '.join(map(str, numbers))}.", steps, ordered


_KINDS: dict[str, Callable[[Random, int], Problem]] = {
    "add": _add,
    "sum": _sum,
    "multiply": _multiply,
    "count": _count,
    "sort": _sort,
}
