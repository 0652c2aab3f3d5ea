"""State taken over at other positions, or after other text: `ApproximateReuse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from ockham.core.arrays import Floats, Ints, Longs
from ockham.core.asks import ReuseAsk
from ockham.core.seams.models import LoadSmall
from ockham.core.seams.observe import Observer
from ockham.core.seams.pages import PagePool
from ockham.core.seams.reuse import NodeFacts


@dataclass(frozen=True, slots=True)
class Given:
    """State that a prompt takes over: its cell `cells[i]` gets what stands in slot `slots[g][i]` of
    each layer group, computed `shifts[i]` positions before it. Or it is `made`: of each layer keys,
    which are not rotated yet, and values, both (cells, kv_heads, head_dim)."""

    cells: Ints
    slots: Sequence[Longs]
    shifts: Ints
    made: Mapping[int, tuple[Floats, Floats]] | None = None


class Splice(Observer, Protocol):
    """What one prompt takes over from others, and what it leaves for them. As an observer it sees
    the prompt's rows."""

    todo: Ints
    """The cells that must be computed, ascending, the prompt's last among them. All others from
    the first that was asked about are given."""

    def given(self, start: int, stop: int) -> Given:
        """Sources of the given cells among [start, stop); cells that are computed may be with
        them, which is overwritten."""
        ...

    def reached(self, cells: int, tables: Sequence[Ints]) -> None:
        """The cells [0, cells) are valid and stand in `tables`."""
        ...

    def leave(self) -> None:
        """Nothing more is taken or left. May be called again."""
        ...


class ApproximateReuse(Protocol):
    """State computed at other positions, or after other text, taken over as it is.

    Only requests that ask for the technique meet it. The engine keeps what follows a cell that was
    taken over away from every `Reuse`. `salt` is the tenant: two never share.
    """

    name: ClassVar[str]

    def attach(self, pool: PagePool, slope: float, layers: Sequence[int]) -> None:
        """Begin to work for an engine, whose model has these layers. `slope` as for `Reuse`."""
        ...

    def open(self, tokens: Ints, first: int, salt: str, ask: ReuseAsk) -> Splice | None:
        """What a prompt takes over from its cell `first` on, those before it being held exactly;
        None if it neither takes nor leaves anything."""
        ...

    def pin(self, tokens: Ints, salt: str, pinned: bool) -> int:
        """Never let go of what is held of `tokens`, or do so again; how many are held."""
        ...

    def facts(self) -> list[NodeFacts]:
        """Every run of tokens that is held."""
        ...

    def tokens_of(self, number: int, most: int) -> Ints:
        """The first tokens of such a run, `most` of them at most."""
        ...

    def evictable(self) -> list[int]:
        """About how many pages of each group could be given back now."""
        ...

    def forget(self) -> None:
        """Give back everything that no running sequence reads."""
        ...

    def held(self) -> list[Ints]:
        """Of each group, every page as often as it is held."""
        ...


@runtime_checkable
class UsesSecondModel(Protocol):
    """An `ApproximateReuse` that makes state by a second model."""

    def attach_second(
        self, load: LoadSmall, hidden_size: int, heads: Mapping[int, tuple[int, int]]
    ) -> None:
        """Called after `attach`. `load` loads the second model; the engine's has this hidden size
        and (kv_heads, head_dim) in each layer. Raises ConfigError where the two do not fit."""
        ...
