"""From the hidden states of a text to what is asked of it: a vector, one for each token, classes.

A text's rows may come in several steps. What is made of them is a function of the rows in their
order, however they were cut into steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ockham.core.arrays import Floats, Ints
from ockham.core.errors import InvalidRequest
from ockham.core.pooling import PoolingParams, Task
from ockham.kernels.ops.dense import Dense
from ockham.model.program.pooling import How, PoolingDescription

Doubles = npt.NDArray[np.float64]
_SHORTEST = 1e-12
"""What a vector is divided by at least when it is normalised."""


class Pool(Protocol):
    """What is gathered of one text's hidden states."""

    whole: bool
    """Whether every row's hidden state is wanted, so that none may be taken over from others."""

    def rows(self, computed: int, rows: int, remaining: int) -> range:
        """Of the next `rows` of `remaining` rows, those whose hidden states are wanted."""
        ...

    def add(self, hidden: Floats) -> None:
        """Take in the wanted hidden states of some rows, (n, hidden), in their order."""
        ...

    def reset(self) -> None:
        """Forget all: the text's rows are computed again."""
        ...

    def finish(self) -> Floats:
        """What was gathered: (hidden,), or (tokens, hidden)."""
        ...


class First:
    """The hidden state of the first token."""

    whole = True

    def __init__(self) -> None:
        self._found: Floats | None = None

    def rows(self, computed: int, rows: int, remaining: int) -> range:
        return range(int(computed == 0 and rows > 0))

    def add(self, hidden: Floats) -> None:
        self._found = hidden[0].copy()

    def reset(self) -> None:
        self._found = None

    def finish(self) -> Floats:
        assert self._found is not None, "the first row has been computed"
        return self._found


class Last(First):
    """The hidden state of the last token."""

    whole = False

    def rows(self, computed: int, rows: int, remaining: int) -> range:
        return range(rows - (rows == remaining), rows)


class Every:
    """The hidden states of all tokens."""

    whole = True

    def __init__(self) -> None:
        self._found: list[Floats] = []

    def rows(self, computed: int, rows: int, remaining: int) -> range:
        return range(rows)

    def add(self, hidden: Floats) -> None:
        self._found.append(hidden.copy())

    def reset(self) -> None:
        self._found.clear()

    def finish(self) -> Floats:
        return np.concatenate(self._found)


class Mean(Every):
    """The mean of the hidden states, from the token numbered `start` on: "mean"; "weighted_mean" by
    the number of the token, counted from 1 (SGPT, arXiv:2202.08904); "mean_sqrt_len", their sum
    over the square root of their number. The sum is made in double, row by row."""

    def __init__(self, how: How, start: int) -> None:
        self._how, self._start = how, start
        self._sum: Doubles | None = None
        self._seen, self._weight = 0, 0.0

    def add(self, hidden: Floats) -> None:
        first, self._seen = self._seen, self._seen + len(hidden)
        counted = hidden[max(0, self._start - first) :]
        rows: Doubles = counted.astype(np.float64)
        if not len(rows):
            return
        if self._how == "weighted_mean":
            weights = np.arange(self._seen - len(rows) + 1, self._seen + 1, dtype=np.float64)
            rows = rows * weights[:, None]
            self._weight += float(weights.sum())
        else:
            self._weight += len(rows)
        # A sum along the first axis adds row after row, also behind what was summed before.
        if self._sum is not None:
            rows = np.concatenate((self._sum[None], rows))
        self._sum = np.add.reduce(rows, axis=0, dtype=np.float64)

    def reset(self) -> None:
        self._sum = None
        self._seen, self._weight = 0, 0.0

    def finish(self) -> Floats:
        if self._sum is None:
            raise InvalidRequest(
                "the text has no tokens behind its prompt, of which the embedding could be the "
                "mean; give a text.",
                "input",
            )
        weight = math.sqrt(self._weight) if self._how == "mean_sqrt_len" else self._weight
        mean: Floats = (self._sum / weight).astype(np.float32)
        return mean


class Largest(Every):
    """The largest hidden states, value by value."""

    def __init__(self) -> None:
        self._most: Floats | None = None

    def add(self, hidden: Floats) -> None:
        largest: Floats = hidden.max(axis=0)
        self._most = largest if self._most is None else np.maximum(self._most, largest)

    def reset(self) -> None:
        self._most = None

    def finish(self) -> Floats:
        assert self._most is not None, "every row has been computed"
        return self._most


_OTHERS: dict[How, Callable[[], Pool]] = {"cls": First, "last": Last, "max": Largest}


@dataclass(frozen=True, slots=True)
class Pooler:
    """What one model makes of hidden states: the rule of its checkpoint, and the products behind
    it."""

    description: PoolingDescription
    dense: Sequence[Dense]
    hidden_size: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What requests may ask for, what it is made for first."""
        if not self.description.classifies:
            return ("embed", "token_embed")
        if self.width == 1 or self.description.score_label is not None:
            return ("score", "classify")
        return ("classify",)

    @property
    def width(self) -> int:
        """Values of an embedding, or how many classes there are."""
        return self.dense[-1].weight.out_features if self.dense else self.hidden_size

    def check(self, params: PoolingParams) -> None:
        """Raise InvalidRequest for what this model cannot do."""
        if params.task not in self.tasks:
            raise InvalidRequest(
                f"this model does {' and '.join(self.tasks)}, and not {params.task}; ask for one "
                "of those, or load a model that is made for it.",
                "task",
            )
        width = self.width if params.task == "embed" else self.hidden_size
        if params.dimensions is not None and params.dimensions > width:
            raise InvalidRequest(
                f"dimensions is {params.dimensions}, but embeddings of this model have "
                f"{width} values; ask for so many or fewer.",
                "dimensions",
            )

    def open(self, params: PoolingParams, skip: int = 0) -> Pool:
        """What gathers the hidden states of one text, whose first `skip` tokens are no part of a
        mean where the checkpoint leaves prompts out."""
        if params.task == "token_embed":
            return Every()
        how = self.description.how
        if how in _OTHERS:
            return _OTHERS[how]()
        return Mean(how, 0 if self.description.include_prompt else skip)

    def wanted(self, first_rows: Ints, counts: Ints) -> Ints:
        """Of whole texts of so many rows each, one after another from row 0 on, the rows whose
        hidden states are wanted; all of these texts are pooled (the task is not "token_embed")."""
        if self.description.how == "cls":
            return first_rows
        if self.description.how == "last":
            return first_rows + counts - 1
        return np.arange(int(counts.sum()), dtype=np.int32)

    def gathered(self, hidden: Floats, counts: Sequence[int], skips: Sequence[int]) -> Floats:
        """(texts, hidden): what `Pool`s would have gathered of whole texts, to the bit. `hidden`
        are the wanted hidden states, of all texts; each has fewer to `skip` than rows."""
        how = self.description.how
        if how in ("cls", "last"):
            return hidden
        ends = list(itertools.accumulate(counts))
        if how == "max":
            largest: Floats = np.maximum.reduceat(hidden, [0, *ends[:-1]], axis=0)
            return largest
        wide, weights = hidden.astype(np.float64), np.array(counts, np.float64)
        skipped = [0] * len(counts) if self.description.include_prompt else skips
        if how == "weighted_mean":
            numbers = np.concatenate([np.arange(1, n + 1, dtype=np.float64) for n in counts])
            wide *= numbers[:, None]
        sums = np.empty((len(counts), hidden.shape[1]))
        for text, (end, count, skip) in enumerate(zip(ends, counts, skipped, strict=True)):
            # A sum along the first axis adds row after row, as `Mean` does.
            np.add.reduce(wide[end - count + skip : end], axis=0, out=sums[text])
            weights[text] = count - skip
            if how == "weighted_mean":
                weights[text] = numbers[end - count + skip : end].sum()
        if how == "mean_sqrt_len":
            weights = np.sqrt(weights)
        means: Floats = (sums / weights[:, None]).astype(np.float32)
        return means

    def answers(self, found: Floats, params: PoolingParams) -> Iterable[Floats]:
        """What `answer` gives for each row of `found`, (texts, hidden)."""
        if self.dense or params.task != "embed":
            return [self.answer(each, params) for each in found]
        return self._embedding(found, params)

    def answer(self, found: Floats, params: PoolingParams) -> Floats:
        """What is answered, (width,) or (tokens, hidden), of what a pool has gathered."""
        if params.task != "token_embed":
            for dense in self.dense:
                found = dense(found[None])[0]
        if params.task in ("classify", "score"):
            return self._activated(found, params) if params.use_activation else found
        return self._embedding(found, params)

    def _embedding(self, found: Floats, params: PoolingParams) -> Floats:
        """Vectors as they are answered, along the last axis."""
        if params.dimensions is not None:
            found = found[..., : params.dimensions]
        normalize = self.description.normalise if params.normalize is None else params.normalize
        return _normalised(found) if normalize else np.ascontiguousarray(found)

    def _activated(self, logits: Floats, params: PoolingParams) -> Floats:
        """Scores, or the probability of each class, of logits."""
        wide = logits.astype(np.float64)
        if params.task == "score" and self.description.score == "identity":
            return logits
        if len(wide) == 1 or self.description.score == "sigmoid":
            chances: Doubles = 0.5 * (1 + np.tanh(0.5 * wide))
        else:
            chances = np.exp(wide - wide.max())
            chances /= chances.sum()
        label = self.description.score_label
        if params.task == "score" and label is not None:
            chances = chances[label : label + 1]
        return chances.astype(np.float32)


def encoded(values: Floats) -> bytes:
    """Values as they are sent: fp32, little-endian."""
    return values.astype("<f4", copy=False).tobytes()


def _normalised(vectors: Floats) -> Floats:
    """Vectors along the last axis, with length 1."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    found: Floats = (wide / np.maximum(lengths, _SHORTEST)).astype(np.float32)
    return found
