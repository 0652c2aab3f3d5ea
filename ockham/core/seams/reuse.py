"""Which state need not be computed again, exactly: `Reuse`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from ockham.core.arrays import Ints
from ockham.core.seams.pages import PagePool
from ockham.core.seams.tiers import Fetch, Tiers


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """State that a Reuse found for a prompt: its first `tokens` cells need not be computed.

    `tables[g]` are their pages, -1 where no later row sees them; the last may be shared in part.
    `handle` is what the Reuse keeps for as long as the sequence runs.
    """

    tokens: int
    tables: Sequence[Ints]
    handle: int


class NodeFacts(NamedTuple):
    """What is known of a run of tokens whose state a Reuse holds: a node of a tree."""

    salt: str
    number: int
    parent: int
    """-1 for what begins a prompt."""
    start: int
    tokens: int
    pages: int
    hits: int
    locks: int
    pinned: bool
    hint: int
    """GONE, SPENT, PLAIN or EXPECTED."""
    made_s: float
    used_s: float
    """When it was made and last used, on the clock of `time.monotonic`."""


NOTHING_KEPT = -1
"""The handle of a sequence of which a Reuse keeps nothing."""

GONE, SPENT, PLAIN, EXPECTED = 0, 1, 2, 3
"""What is said of state: its last user is known to be done; somebody predicts that nobody will use
it again; nothing; somebody predicts that it will be used."""


class Reuse(Protocol):
    """Which state need not be computed again.

    `lookup` is asked when a prompt is admitted, `keep` is told when more cells of a sequence hold
    valid state. Both give a handle, which stands for what the sequence reads; `share` takes it for
    one more sequence, `leave` gives it back when the sequence runs no longer. `salt` is the tenant:
    two never share.
    """

    name: ClassVar[str]

    def attach(self, pool: PagePool, slope: float, tiers: Tiers | None = None) -> None:
        """Begin to work for an engine. `slope`: what computing a token costs more for each token
        before it, in units of the first. `tiers`: where state may go beside the pool."""
        ...

    def fetch(self, tokens: Ints, salt: str) -> Fetch | None:
        """Begin to bring near what is held of `tokens` farther away than in the pool. Asked when a
        sequence could run, and again if the pool has lost what it had; None means: ask later."""
        ...

    def advance(self, beside_steps: bool) -> None:
        """Take in what fetches have brought. Called before each step; `beside_steps` says that
        sequences run, which should not be held up."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Sleep until a fetch has news, if there is one: there is nothing else to do."""
        ...

    def lookup(self, tokens: Ints, salt: str) -> CachedPrefix | None:
        """The longest prefix of `tokens` that is held."""
        ...

    def should_wait(
        self, tokens: Ints, salt: str, others: Iterable[tuple[Ints, str]], least: int
    ) -> int:
        """If one of `others` (their tokens and salts), which are being computed now, will soon have
        computed at least `least` more tokens of a prompt than are held: how many that will be, and
        the prompt should wait. Else 0."""
        ...

    def keep(self, handle: int, tokens: Ints, salt: str, tables: Sequence[Ints]) -> int:
        """The cells of `tokens` are valid and stand in `tables`. Gives the handle from now on."""
        ...

    def share(self, handle: int) -> int: ...

    def leave(self, handle: int) -> None: ...

    def hint(self, tokens: Ints, salt: str, hint: int, start: int) -> None:
        """Say GONE, SPENT, PLAIN or EXPECTED of the state of `tokens` from cell `start` on."""
        ...

    def held_tokens(self, tokens: Ints, salt: str) -> int:
        """How many of the first tokens `lookup` would find. This is no use of them."""
        ...

    def agreed_tokens(self, tokens: Ints, salt: str) -> int:
        """How many of the first tokens others had computed, whether all that a row needs to go on
        from there is still held or not."""
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
        """Of each group, every page as often as it is held; [] if nothing ever is."""
        ...
