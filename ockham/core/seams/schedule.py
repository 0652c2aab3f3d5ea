"""The order and size of work in a step: `Policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

from ockham.core.arrays import Ints


class Candidate(Protocol):
    """What a Policy may know of a sequence."""

    @property
    def arrival_s(self) -> float:
        """Seconds on a clock that only goes on."""
        ...

    @property
    def order(self) -> tuple[int, int]:
        """Place in the order of arrival, and the branch's number: the lower, the earlier."""
        ...

    @property
    def prompt(self) -> Ints:
        """The tokens of its prompt."""
        ...

    @property
    def salt(self) -> str:
        """State is shared only with the same salt."""
        ...

    @property
    def tenant(self) -> str:
        """Who shares the engine fairly with others."""
        ...

    @property
    def priority(self) -> int:
        """Among those of its tenant: the lower, the earlier."""
        ...

    @property
    def seats(self) -> int:
        """Running sequences that it counts for."""
        ...

    @property
    def computed(self) -> int:
        """Cells that hold valid state."""
        ...

    @property
    def computed_once(self) -> int:
        """Cells that were computed already: more than 0 in a candidate that was preempted."""
        ...

    @property
    def orderly(self) -> bool:
        """Whether the order of arrival was planned so that the memory suffices: see `Request`."""
        ...

    @property
    def remaining_prefill(self) -> int:
        """Rows that must be computed before the next token can be sampled, minus one."""
        ...

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        ...

    @property
    def remaining_tokens(self) -> int:
        """Tokens that it may still generate, at most."""
        ...


class Policy(Protocol):
    """The order and size of work in a step."""

    name: ClassVar[str]

    def add(self, candidate: Candidate) -> None:
        """It waits from now on."""
        ...

    def remove(self, candidate: Candidate) -> None:
        """It waits no longer."""
        ...

    def begin(self, candidate: Candidate) -> None:
        """It runs from now on; what is held of its state is known. One that waited is removed
        right after, or at the end of the step."""
        ...

    def end(self, candidate: Candidate) -> None:
        """It runs no longer: it has ended, or was preempted and will be added again."""
        ...

    def order(
        self,
        fits: Callable[[Candidate], bool],
        waits: Callable[[Candidate], int],
        full: bool,
    ) -> Iterator[Candidate]:
        """The waiting sequences in the order in which they should be admitted: each that is given
        begins, unless no more are asked for. (Or it is found that its state lies farther away, and
        then it waits for that.) Nothing is added or removed while more are asked for. `full` says
        that there is no seat: only one for which another gives way can begin.

        One that does not fit beside what its tenant computes now should not be admitted yet; that
        is asked at little cost. `waits` tells how many tokens of a candidate another is about to
        compute; if that is more than 0, it should not be admitted yet either. Thousands may wait:
        a policy should not look at all of them in a step."""
        ...

    @property
    def pressing(self) -> bool:
        """Whether a running sequence may have to give its place to one that waits. Asked in every
        step."""
        ...

    def gives_way(self, candidate: Candidate, running: Sequence[Candidate]) -> Candidate | None:
        """Which running sequence gives its place to a waiting one, which is next and finds no seat
        or no pages; None if it should wait until one ends. Two must not take places from each
        other in turn."""
        ...

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        """Rows of this step for each prefilling sequence; their sum is at most `budget`, and each
        is at most the rows that the sequence still needs."""
        ...

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        """Which running sequence gives up its pages when there are no more."""
        ...
