"""A drafter that knows the answers, and spoils as many of them as it is told."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import ClassVar

from ockham.core.arrays import Ints
from ockham.core.seams import Draft, Drafter, DraftStream
from ockham.core.speculative import SpeculativeConfig
from ockham.engine.speculation import Speculation


class Foretelling(Drafter):
    """Proposes trees of right and wrong tokens: what `texts`, which hold prompts and their answers,
    go on with where they begin like the sequence, among tokens drawn at random."""

    name: ClassVar[str] = "foretelling"
    kinds: ClassVar[tuple[float, ...]] = (0.5,)

    def __init__(self, vocabulary: int, seed: int, right: float = 0.7, branches: int = 2) -> None:
        self.texts: list[list[int]] = []
        self._vocabulary = vocabulary
        self._random = random.Random(seed)
        self._right = right
        self._branches = branches

    def open(self, salt: str) -> _Stream:
        return _Stream(self)

    def draft(self, tokens: list[int], most: int) -> Draft:
        """A tree of up to `most` tokens, each below the last one or an earlier one."""
        drafted: list[int] = []
        parents: list[int] = []
        paths: list[list[int]] = [tokens]
        rng = self._random
        while len(drafted) < most:
            parent = rng.randrange(max(-1, len(drafted) - self._branches), len(drafted))
            path = paths[parent + 1]
            following = [t[len(path)] for t in self.texts if t[: len(path)] == path != t]
            right = following and rng.random() < self._right
            token = rng.choice(following) if right else rng.randrange(self._vocabulary)
            drafted.append(token)
            parents.append(parent)
            paths.append([*path, token])
        return Draft(drafted, parents, [0] * len(drafted))


class _Stream(DraftStream):
    def __init__(self, drafter: Foretelling) -> None:
        self._drafter = drafter
        self._tokens: list[int] = []

    def extend(self, tokens: Ints) -> None:
        self._tokens += tokens.tolist()

    def propose(self, most: int, accepted: Sequence[float], worth: float) -> Draft | None:
        return self._drafter.draft(self._tokens, most) if most else None

    def close(self) -> None:
        self._tokens.clear()

    @property
    def bytes(self) -> int:
        return 0


def foretelling(
    vocabulary: int,
    texts: Iterable[list[int]] = (),
    *,
    most: int = 8,
    seed: int = 0,
    page_tokens: int | None = None,
    **how: float,
) -> Speculation:
    """A controller that always verifies what such a drafter proposes."""
    drafter = Foretelling(vocabulary, seed, **how)  # type: ignore[arg-type]
    drafter.texts.extend(texts)
    config = SpeculativeConfig(method="none", num_speculative_tokens=most, adaptive=False)
    return Speculation(config, [drafter], page_tokens=page_tokens)
