"""Votes: the answers of samples, counted or weighed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import comb


class Tally:
    """The answers that were counted, of so many that there may be."""

    def __init__(self, samples: int) -> None:
        self.left = samples
        """How many there may still be."""
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}
        """By which sample each answer was given first: of two as frequent, the earlier wins."""
        self.empty = 0
        """Samples without an answer."""
        self._counted = 0

    def add(self, answer: str | None) -> None:
        """Count the next sample."""
        self.left -= 1
        if answer is None:
            self.empty += 1
        else:
            self.first.setdefault(answer, self._counted)
            self.counts[answer] += 1
        self._counted += 1

    @property
    def ranked(self) -> list[str]:
        """The answers, the most frequent first."""
        return sorted(self.counts, key=lambda each: (-self.counts[each], self.first[each]))

    def samples(self, numbers: Iterable[int]) -> list[int]:
        """Of samples with these numbers, the first that gives each answer, the most frequent answer
        first; then the others."""
        first = [self.first[answer] for answer in self.ranked]
        return [*first, *(n for n in sorted(numbers) if n not in first)]

    @property
    def answer(self) -> str | None:
        """What most say so far; None if none has an answer."""
        return self.ranked[0] if self.counts else None

    @property
    def certain(self) -> bool:
        """Whether the samples that are left cannot change the answer, whatever they say: another
        one that is given as often does not win with as many."""
        if not self.left:
            return True
        ranked = self.ranked
        if not ranked or self.left > self.counts[ranked[0]]:
            return False
        leader = ranked[0]
        ahead = [self.counts[leader] - self.counts[other] for other in ranked[1:]]
        earlier = [self.first[leader] < self.first[other] for other in ranked[1:]]
        return all(
            votes > self.left or (votes == self.left and first)
            for votes, first in zip(ahead, earlier, strict=True)
        )

    @property
    def confidence(self) -> float:
        """How probable it is that the answer that leads is given more often than the second, with
        all shares as likely before any sample: that a Beta(a + 1, b + 1) variable is above 1/2,
        where a and b are their counts. It is a sum of binomials, as a and b are integers."""
        counts = [count for _, count in self.counts.most_common(2)]
        if not counts:
            return 0.0
        most, second = counts[0], counts[1] if len(counts) > 1 else 0
        tosses = most + second + 1
        heads: int = sum(comb(tosses, count) for count in range(most + 1))
        return float(heads / 2**tosses)


def weigh(answers: dict[int, str | None], weights: dict[int, float]) -> dict[str, float]:
    """The sum of the weights of the samples that give an answer, of each answer; the heaviest
    first, and of two as heavy the one that was given first. Samples without a weight do not count.
    """
    totals: dict[str, float] = {}
    for number in sorted(answers):
        answer = answers[number]
        if answer is not None and number in weights:
            totals[answer] = totals.get(answer, 0.0) + weights[number]
    return dict(sorted(totals.items(), key=lambda each: -each[1]))
