"""Which blocks of keys queries visit: `Pattern`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from ockham.core.choices import Choice
from ockham.core.seams.observe import Observer
from ockham.core.visits import BlockVisits


class AttentionGroup(msgspec.Struct, frozen=True):
    """A group of attention layers with the same state, as a pattern sees it. A row sees the latest
    `window` keys, or all of them if that is None."""

    layers: tuple[int, ...]
    kv_heads: int
    window: int | None


class SequencePattern(Observer, Protocol):
    """What the rows of one sequence visit.

    Rows are named by their query block (`core.visits`): what is said of a block holds for each of
    its rows, in a prefill, in a decode and in a draft alike.
    """

    fixed: ClassVar[bool] = True
    """Whether what a block visits is always the same. Otherwise it is asked anew in every step."""
    observes: ClassVar[bool] = False
    """Whether it wants to know something of the sequence's rows, as an `Observer`."""

    @property
    def exact_until(self) -> int | None:
        """The first token whose state depends on the length of the prompt, so that no other
        sequence goes on from it; None if there is none."""
        return None

    @property
    def whole_until(self) -> int:
        """The end of the leading query blocks that are each computed in one step, because their
        rows choose together: a multiple of 64, and not beyond `exact_until`."""
        return 0

    def for_prompt(self, tokens: int) -> SequencePattern:
        """That of a sequence whose prompt has so many tokens."""
        return self

    def visits(self, group: int, block: int) -> BlockVisits | None:
        """What the rows of query block `block` visit in the layers of a group; None for all blocks
        of keys. Each list must hold `block` itself; blocks after it are visited by nobody."""
        ...

    def choice(self, group: int) -> Choice | None:
        """How its rows choose by themselves in the layers of a group, which have no window; None
        if they do not."""
        return None

    @property
    def reorders(self) -> range | None:
        """Cells that are put into another order once the last of them is computed, so that those
        whose keys are alike stand side by side, in each layer and key-value head its own way
        (`Planes.alike`). Rows after them see them in that order. Borders are multiples of
        `core.visits.BLOCK_KEYS`. None if all stay where they are."""
        return None

    def fork(self) -> SequencePattern:
        """That of another sequence, which goes on from this one's state."""
        return self


class Pattern(Protocol):
    """Which blocks of keys queries visit, for each key-value head.

    State depends on it, so that a pattern which leaves keys out is not exact. If what a row visits
    follows from its own past and from the ask alone, the class says `shares = True`: sequences that
    ask the same may go on from each other's state, up to `SequencePattern.exact_until`.

    A class whose rows leave nothing out as long as they are the prompt's has a method
    `alters_prompts(ask) -> bool` that says so. The state of those prompts is anybody's, and nobody
    goes on from what comes after them.

    A class whose rows choose by looking scores up has a method `codebooks(groups)` that gives for
    each group what `GroupLayout.books` has, or None. It is asked of the engine's setting alone,
    when the engine starts.
    """

    name: ClassVar[str]

    def open(self, ask: Any, groups: Sequence[AttentionGroup]) -> SequencePattern | None:
        """The pattern of a sequence, from what its request asks (the class's `Ask`) and the model's
        groups of attention layers; None if every row visits every block. Raises InvalidRequest
        where the ask does not fit the model."""
        ...
