"""Which cells stay: `Keep`, and `Keeping` for one sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from ockham.core.arrays import Floats, Ints
from ockham.core.seams.observe import Observer
from ockham.core.seams.pattern import AttentionGroup


class LayerAttention(msgspec.Struct, frozen=True):
    """How the queries of a layer meet its keys, and what becomes of its values."""

    heads: int
    head_dim: int
    scale: float
    """Of the products of queries and keys."""
    inverse_frequencies: Floats | None
    """Of its rotary embedding, as `kernels.ops.Rope` has them; None if it rotates nothing."""
    rotary_scale: float
    """By which the rotary embedding multiplies."""
    output: Callable[[], Floats]
    """The matrix (hidden, heads * head_dim) that ends it. It is unpacked at each call."""


class HeldCells(Protocol):
    """What one group of layers holds of one sequence."""

    def read(self, first: int, last: int) -> tuple[Floats, Floats]:
        """The keys, rotated, and the values of the cells [first, last), as they are read back:
        (layers, kv_heads, last - first, head_dim) each. What stands in a gap means nothing."""
        ...


class KeptText(msgspec.Struct, frozen=True):
    """What a Keep may know of a sequence before its first step: the tokens of its prompt, the
    groups of layers that hold its cells, and how wide the model's hidden states are; of a loaded
    model, also how its layers attend."""

    prompt_tokens: int
    groups: tuple[AttentionGroup, ...]
    hidden_size: int
    layers: Mapping[int, LayerAttention] = {}


class Merges(msgspec.Struct, frozen=True):
    """Cells that are dropped and go on in cells that stay. Pair i, of the arrays (m,), is of head
    `heads[i]` of the group's layer `layers[i]`: cell `dropped[i]`, by its index among the cells
    held, goes on in the cell that stays as number `into[i]`, with the weight `weights[i]` beside a
    weight of 1 of that cell itself. A cell becomes the weighted mean of its own values and those of
    all that go on in it; its key too, if `keys` is true, which stands still otherwise."""

    layers: Ints
    heads: Ints
    dropped: Ints
    into: Ints
    weights: Floats
    keys: bool = False


class Kept(msgspec.Struct, frozen=True):
    """What stays of a group: `cells`, as `Keeping.keep` gives them, and what goes on in them."""

    cells: Ints
    merges: Merges | None = None


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
    reads: bool = False
    """Whether what the cells hold decides, too: `read` is called before `keep` then."""

    @property
    def reorders(self) -> range | None:
        """Where all cells stay, those that change places at the border: see
        `SequencePattern.reorders`. `keep` is not asked then."""
        return None

    def border(self, tokens: int) -> int | None:
        """The next number of tokens, above `tokens`, at which cells are dropped; None if there is
        none. A function of `tokens`, and of what was asked, alone."""
        ...

    def most_cells(self, tokens: int) -> int:
        """The most cells that a group without a window holds at once of a sequence that grows to so
        many tokens."""
        ...

    def most_cells_of(self, group: int, tokens: int) -> int:
        """The same of one group of layers without a window, for a rule by which one holds fewer
        than another."""
        return self.most_cells(tokens)

    def apart(self, group: int) -> tuple[int, ...]:
        """The layers of a group without a window whose heads all hold fewer cells than those of
        others. Layers of a group share their pages: so an engine whose own setting names the rule
        makes a group of these, whose pages are then freed."""
        return ()

    def read(self, group: int, places: Ints, held: HeldCells) -> None:
        """Look at what a group of layers holds, of which `keep` is asked next with these
        `places`."""
        return

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

    def reduce(self, group: int, places: Ints, held: HeldCells) -> Kept | None:
        """What stays of a group, for a rule that lets what it drops go on in what stays, which
        looks at what the cells `held` hold; None for all. Any other says by `keep` which cells
        stay. It changes nothing either."""
        cells = self.keep(group, places)
        return None if cells is None else Kept(cells)

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
