"""Whose turn it is: tenants share the engine by deficit round robin, under every policy.

A tenant begins sequences while it has credit, and pays for each what it will compute: tokens of the
prompt that are not held, and the tokens that it is expected to generate. When nobody with credit
has anything to begin, a new round gives every tenant the same credit (Shreedhar and Varghese,
SIGCOMM '95; a turn ends below zero, so that no cost must be known beforehand). So a sequence waits
for a share of the other tenants' work that depends on how many tenants there are, and not on how
much they have queued. Within a tenant, sequences are ordered by priority and then by arrival; a
policy may choose others of the same priority.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ockham.core.seams import Candidate

QUANTUM_TOKENS = 1024.0
"""Credit of a round. A longer turn keeps more sequences that share a prefix together."""
MOST_WAITS = 64
"""Candidates of a tenant that are found to wait for something in a step, before the tenant is given
up for that step: many may begin alike, and each look costs as much as reading its prompt."""
MOST_WAITS_OF_ALL = 128
"""The same of all tenants together."""
MOST_PASSED = 256
"""Candidates of a tenant that are passed by in a step without such a look."""
MOST_PASSED_OF_ALL = 1024
"""The same of all tenants together."""
_FIRST_TYPICAL_TOKENS = 64.0
"""What a sequence is expected to generate, before any has ended."""
_REMEMBERED = 32
"""The expectation is a mean over about so many sequences."""

Order = tuple[int, int]
Key = tuple[int, Order]


@dataclass(slots=True, eq=False)
class Tenant:
    """What one tenant has waiting and running. `waiting` is sorted by priority, then arrival."""

    name: str
    credit: float = QUANTUM_TOKENS
    waiting: list[Key] = field(default_factory=list)
    candidates: dict[Key, Candidate] = field(default_factory=dict)
    begun: set[Key] = field(default_factory=set)
    """Those of `waiting` that have begun and are about to be taken out."""
    seats: int = 0
    """Of its running sequences."""
    overtaken: int = 0
    """Sequences of this tenant that began before the first that waits, since it is the first."""

    @property
    def first(self) -> Key | None:
        """Of those that wait, the one with the best priority that arrived first."""
        return next((key for key in self.waiting if key not in self.begun), None)


@dataclass(slots=True)
class _Run:
    """A running sequence: what it was charged, and where it stood when it began."""

    candidate: Candidate
    tenant: Tenant
    cost: float
    computed: int
    generated: int
    seats: int

    @property
    def tokens(self) -> int:
        """Computed since it began."""
        return max(0, self.candidate.computed - self.computed)


class Tenants:
    """The tenants that have work, and what each is owed."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._runs: dict[Order, _Run] = {}
        self._idle: dict[str, Tenant] = {}
        """Tenants in credit that wait and run nothing: they go first."""
        self._ready: dict[str, Tenant] = {}
        """Other tenants in credit that wait, in the order of their turns."""
        self._owing: dict[str, Tenant] = {}
        """Tenants that wait for the next round."""
        self._typical_tokens = _FIRST_TYPICAL_TOKENS
        self._pressing: bool | None = None

    # -- what waits and runs -------------------------------------------------------------------

    def add(self, candidate: Candidate) -> None:
        """It waits from now on."""
        tenant = self._tenants.get(candidate.tenant)
        if tenant is None:
            tenant = self._tenants[candidate.tenant] = Tenant(candidate.tenant)
        key = key_of(candidate)
        insort(tenant.waiting, key)
        tenant.candidates[key] = candidate
        if tenant.first == key:
            tenant.overtaken = 0
        self._place(tenant)

    def remove(self, candidate: Candidate) -> None:
        """It waits no longer."""
        tenant, key = self._tenants[candidate.tenant], key_of(candidate)
        if tenant.first == key:  # given up, else it would have begun
            tenant.overtaken = 0
        tenant.begun.discard(key)
        del tenant.candidates[key]
        del tenant.waiting[bisect_left(tenant.waiting, key)]
        self._place(tenant)

    def begin(self, candidate: Candidate) -> None:
        """It runs from now on: its tenant pays for it."""
        tenant = self._tenants.get(candidate.tenant)
        if tenant is None:
            tenant = self._tenants[candidate.tenant] = Tenant(candidate.tenant)
        key = key_of(candidate)
        if key in tenant.candidates:
            tenant.overtaken = 0 if key == tenant.first else tenant.overtaken + 1
            tenant.begun.add(key)
        parent = self._runs.get((candidate.order[0], 0))
        if candidate.order[1] and parent is not None and parent.seats > 1:
            parent.seats -= 1  # it held the seat of a choice that now has its own
            tenant.seats -= 1
        expected = min(self._typical_tokens, candidate.remaining_tokens)
        cost = candidate.remaining_prefill + expected
        seats = candidate.seats
        self._runs[candidate.order] = _Run(
            candidate, tenant, cost, candidate.computed, candidate.generated, seats
        )
        tenant.credit -= cost
        tenant.seats += seats
        self._place(tenant)

    def end(self, candidate: Candidate) -> None:
        """It runs no longer: its tenant pays for what was computed, whatever was expected."""
        run = self._runs.pop(candidate.order)
        tenant = run.tenant
        generated = max(0, candidate.generated - run.generated)
        self._typical_tokens += (generated - self._typical_tokens) / _REMEMBERED
        tenant.credit = min(QUANTUM_TOKENS, tenant.credit + run.cost - run.tokens)
        tenant.seats -= run.seats
        self._place(tenant)

    def _place(self, tenant: Tenant) -> None:
        """Put a tenant where it belongs now."""
        self._pressing = None
        group = None
        if len(tenant.waiting) > len(tenant.begun):
            group = self._owing
            if tenant.credit > 0:
                group = self._ready if tenant.seats else self._idle
        for other in (self._idle, self._ready, self._owing):
            if other is not group:
                other.pop(tenant.name, None)
        if group is not None:
            group.setdefault(tenant.name, tenant)
        elif not tenant.waiting and not tenant.seats and tenant.credit >= 0:
            self._tenants.pop(tenant.name, None)
        if not (self._idle or self._ready or self._owing):
            self._forgive()

    def _forgive(self) -> None:
        """Nobody waits: what absent tenants owe was taken from nobody."""
        absent = [t.name for t in self._tenants.values() if not t.waiting and not t.seats]
        for name in absent:
            del self._tenants[name]

    # -- turns ---------------------------------------------------------------------------------

    def turns(self, may_begin: Callable[[Candidate], bool]) -> Turns:
        """The turns of one step; `may_begin` says whether a candidate is worth a look: one that
        is not is none for the rest of the step."""
        self._charge()
        return Turns(self, may_begin)

    def _charge(self) -> None:
        """Sequences that have generated more than was expected of them are paid for as they go."""
        for run in self._runs.values():
            more = run.tokens - run.cost
            if more > 0:
                run.cost += more
                run.tenant.credit -= more
                self._place(run.tenant)

    def groups(self) -> tuple[dict[str, Tenant], ...]:
        """Tenants that may begin something, those first that run nothing."""
        return self._idle, self._ready

    def postpone(self, name: str) -> None:
        """A tenant's turn comes after that of the others."""
        for group in self.groups():
            if name in group:
                group[name] = group.pop(name)

    def next_round(self, out: set[str]) -> bool:
        """Give credit until one that owes, and is not `out`, may begin something; False if there is
        none."""
        most = max((t.credit for t in self._owing.values() if t.name not in out), default=None)
        if most is None:
            return False
        gift = (int(-most // QUANTUM_TOKENS) + 1) * QUANTUM_TOKENS
        for tenant in list(self._tenants.values()):
            tenant.credit = min(QUANTUM_TOKENS, tenant.credit + gift)
            self._place(tenant)
        return True

    # -- who gives way -------------------------------------------------------------------------

    def _fair_seats(self) -> int:
        """What each tenant would hold if all held the same. Where there are more tenants than
        seats, places change hands by themselves: then it is half of the seats, for whom no tenant
        alone should hold more."""
        seats = sum(tenant.seats for tenant in self._tenants.values())
        active = sum(bool(tenant.waiting or tenant.seats) for tenant in self._tenants.values())
        return seats // max(1, active) or max(1, seats // 2)

    @staticmethod
    def _bearable(tenant: Tenant, fair: int) -> int:
        """How many seats another may hold before it gives one to this tenant: its share, if this
        one runs nothing, else more than that, so that few places change hands."""
        return fair if not tenant.seats else 2 * fair - 1

    @property
    def pressing(self) -> bool:
        """Whether a tenant waits that holds less than its share, for whom another gives way."""
        if self._pressing is None:
            self._pressing = len(self._tenants) > 1 and self._is_pressing()
        return self._pressing

    def _is_pressing(self) -> bool:
        fair = self._fair_seats()
        most = max(tenant.seats for tenant in self._tenants.values())
        return any(
            tenant.seats < fair and most > self._bearable(tenant, fair)
            for group in (self._idle, self._ready, self._owing)
            for tenant in group.values()
        )

    def gives_way(self, candidate: Candidate, running: Iterable[Candidate]) -> Candidate | None:
        """The running sequence that should give its place to one that waits: of a tenant that holds
        more than its share, for a tenant that does not hold its own yet. So no two tenants take
        places from each other in turn."""
        fair, tenant = self._fair_seats(), self._tenants[candidate.tenant]
        if tenant.seats + candidate.seats > fair:
            return None
        return self._of_the_largest(running, self._bearable(tenant, fair))

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        """The running sequence that gives up its pages when there are no more: the last of the
        tenant that holds most beyond its share, else the last of all. The one that arrived first
        of all stays as long as others run, so that something always gets done."""
        chosen = self._of_the_largest(running, self._fair_seats())
        if chosen is not None:
            return chosen
        if len({candidate.tenant for candidate in running}) == 1:
            return max(running, key=key_of)
        return max(running, key=lambda candidate: candidate.order)

    def _of_the_largest(self, running: Iterable[Candidate], bearable: int) -> Candidate | None:
        """The last sequence of the tenant with the most seats, if these are more than is bearable
        and not all of one sequence."""
        of: dict[str, list[Candidate]] = {}
        for candidate in running:
            of.setdefault(candidate.tenant, []).append(candidate)
        several = [name for name, own in of.items() if len(own) > 1]
        largest = max(several, key=lambda name: self._tenants[name].seats, default=None)
        if largest is None or self._tenants[largest].seats <= bearable:
            return None
        return max(of[largest], key=key_of)


class Turns:
    """The turns of one step. Tenants are added to and taken from by nobody else meanwhile."""

    def __init__(self, tenants: Tenants, may_begin: Callable[[Candidate], bool]) -> None:
        self._tenants = tenants
        self._may_begin = may_begin
        self._at: dict[str, int] = {}
        self._looks: dict[str, int] = {}
        self._passed = 0
        self._out: set[str] = set()
        """Tenants that can begin nothing in this step."""

    def tenant(self) -> Tenant | None:
        """Whose turn it is; None if nobody can begin anything more in this step."""
        while True:
            for group in self._tenants.groups():
                for _ in range(len(group)):
                    if self._passed >= MOST_PASSED_OF_ALL:
                        return None
                    tenant = next(iter(group.values()))
                    if self.head(tenant) is not None:
                        return tenant
                    self._tenants.postpone(tenant.name)
            if not self._tenants.next_round(self._out):
                return None

    def head(self, tenant: Tenant) -> Candidate | None:
        """The first of a tenant's that may begin in this step."""
        if tenant.name in self._out:
            return None
        at = self._at.get(tenant.name, 0)
        for place in range(at, min(len(tenant.waiting), MOST_PASSED)):
            key = tenant.waiting[place]
            candidate = tenant.candidates[key]
            if key not in tenant.begun and self._may_begin(candidate):
                self._at[tenant.name] = place
                self._passed += place - at
                return candidate
        self._out.add(tenant.name)
        self._passed += 1 + len(tenant.waiting) - at
        return None

    def may_be_next(self, candidate: Candidate, most_overtaken: int) -> bool:
        """Whether a candidate may begin although it is another's turn: its tenant has credit, it is
        as urgent as what stands first there, and that was not overtaken `most_overtaken` times."""
        for group in self._tenants.groups():
            own = group.get(candidate.tenant)
            head = None if own is None else self.head(own)
            if own is not None and head is not None:
                return (
                    own.overtaken < most_overtaken
                    and head.priority == candidate.priority
                    and self._may_begin(candidate)
                )
        return False

    def waits(self, candidate: Candidate) -> None:
        """It was found to wait for something."""
        name = candidate.tenant
        self._looks[name] = self._looks.get(name, 0) + 1
        self._passed += MOST_PASSED_OF_ALL // MOST_WAITS_OF_ALL
        if self._looks[name] >= MOST_WAITS:
            self._out.add(name)
        self._tenants.postpone(name)


def key_of(candidate: Candidate) -> Key:
    """Sorts a tenant's own: the lower, the earlier."""
    return candidate.priority, candidate.order
