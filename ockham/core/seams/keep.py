"""Which cells stay: `Keep`, and `Keeping` for one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from ockham.core.arrays import Ints
from ockham.core.seams.observe import Observer
from ockham.core.seams.pattern import AttentionGroup


class KeptText(msgspec.Struct, frozen=True):
    """What a Keep may know of a sequence before its first step: the tokens of its prompt, the
    groups of layers that hold its cells, and how wide the model's hidden states are."""

    prompt_tokens: int
    groups: tuple[AttentionGroup, ...]
    hidden_size: int


class Keeping(Observer, Protocol):
    """Which cells of one sequence stay. Later rows see those, in their order, and what came after
    them; all keys keep their positions.

    Cells are dropped at *borders*, which are numbers of tokens. No step crosses one, so that every
    row sees the same cells whatever the chunks, the drafts, the batch and preemption were, as long
    as `keep` depends on the places, and on what was seen of the sequence's own rows, alone.

    As an observer it sees the sequence's rows if `observes` is true. It must see all of them then:
    its technique does not say `shares`, so that each sequence computes its own. A class that
    derives from it inherits one that remembers nothing of its sequence.
    """

    name: str
    """The technique under which the ledger books what attention need not do."""
    observes: ClassVar[bool] = False

    def border(self, tokens: int) -> int | None:
        """The next number of tokens, above `tokens`, at which cells are dropped; None if there is
        none. A function of `tokens`, and of what was asked, alone."""
        ...

    def most_cells(self, tokens: int) -> int:
        """The most cells that a group without a window holds at once of a sequence that grows to so
        many tokens."""
        ...

    def keep(self, group: int, places: Ints) -> Ints | None:
        """Which cells of a group of layers without a window stay, in this order: indices (n,) into
        the cells that it holds, or (kv_heads, n) or (layers, kv_heads, n) where each head keeps its
        own; None for all. `places` are those of the cells' tokens, with the axes that were kept
        before.

        Where heads keep different numbers, n is the largest, and entries of -1 stand before what a
        head keeps: a *gap*, whose length is a multiple of `core.visits.BLOCK_KEYS`. No row visits
        it. It takes memory like the cells of the head that keeps most, because the layers and heads
        of a group share a page table; what it saves is time. In `places` a gap is -1.

        It changes nothing: where pages are short it is asked again later, or of another sequence
        that forked from this one before the cells were dropped."""
        ...

    def dropped(self, kept: Mapping[int, Ints], tokens: int) -> None:
        """The border `tokens` is passed: the groups in `kept` hold these of their cells alone, as
        `keep` said, and other groups have dropped none."""
        return

    def fork(self, tokens: int) -> Keeping | None:
        """The same for another sequence that goes on from the first `tokens` tokens of this one;
        None if it is not known any more how this one stood there."""
        return self

    def fresh(self) -> Keeping:
        """The same for a sequence that computes its first token next."""
        return self


class Keep(Protocol):
    """Which cells stay, beside those that lie before a sliding window: no later row sees those, and
    they are freed in any case."""

    name: ClassVar[str]

    def open(self, ask: Any, text: KeptText) -> Keeping | None:
        """What decides for one sequence, whose request asks so (an `Ask` of the technique's); None
        if all its cells stay. Raises InvalidRequest where the ask does not fit the text or the
        model."""
        ...
