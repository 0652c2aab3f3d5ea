"""Which approximate techniques keep to their floor: the watch over each use of them.

It knows nothing of engines. A use that falls under the floor is switched off. After a rest it is on
probation: a part of the requests that ask for it get it again, and the text of each of these is
scored. It comes back if a test in the other direction says that it is above the floor, and rests
for twice as long if it is not.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

import msgspec

from ockham.core.floors import Floors
from ockham.core.guarded import Guarded, GuardEvent, State
from ockham.core.sequential import Detector, Recovery

log = logging.getLogger("ockham.engine")

MOST_USES = 256
"""Uses that are watched. For another one the rarest goes: requests may ask for anything."""
MOST_EVENTS = 64
KL_CAP_NATS = 1.0
"""A divergence counts at most so much in the test (not in the sums): it must have a bound."""
PROBATION_SHARE = 0.125
"""Of the requests that ask for a use on probation, those that get it."""
PROBATION_TEXTS = 512
"""Texts after which a probation that has shown nothing is over."""
LONGEST_REST_S = 86400.0


class Use(NamedTuple):
    """Approximate techniques that one request used together, how they were set, and its
    workload."""

    techniques: tuple[str, ...]
    settings: str
    workload: str


class Admitted(NamedTuple):
    """Whether a request gets what it asks for, whether its text is to be scored, and the `episode`
    of the use in which that was decided."""

    served: bool
    scored: bool
    episode: int


class Watch:
    """The watch over one use. Times are those of `clock`, in seconds."""

    def __init__(
        self, use: Use, floors: Floors, share: float, rest_s: float, clock: Callable[[], float]
    ) -> None:
        self.use = use
        self.found = Guarded(
            techniques=use.techniques, settings=use.settings, workload=use.workload
        )
        self._floors, self._share, self._clock = floors, share, clock
        self._first_rest_s = self._rest_s = rest_s
        self._off_s = 0.0
        self._episode = 0
        """Counts the changes of state: a text that was given in an earlier one says nothing now."""
        self._probation_texts = 0
        self._begin("on")

    @property
    def state(self) -> State:
        return self.found.state

    def admit(self, random: Random) -> Admitted:
        """Decide about a request. What it holds and what becomes of it have no part in that."""
        self.found.requests += 1
        served, scored = self.state != "off", random.random() < self._share
        if self.state == "probation":
            served = scored = random.random() < PROBATION_SHARE
        self.found.left_out += not served
        return Admitted(served, served and scored, self._episode)

    def rested(self) -> bool:
        """Begin a probation if it is time for one; whether it is."""
        if self.state != "off" or self._clock() < self._off_s + self._rest_s:
            return False
        self._begin("probation")
        return True

    def add_agreement(self, agreed: int, positions: int, episode: int) -> str | None:
        """Take in a text: at how many of its positions the exact model gave the same token. Says
        why the state has changed, if it has."""
        found = self.found
        found.texts += 1
        found.positions += positions
        found.agreed += agreed
        if episode != self._episode or self.state == "off":
            return None
        lost = float(positions - agreed)
        if self._agreement is not None and self._agreement.add(lost, positions):
            return self._switch_off(f"agreement is under {self._floors.agreement:g}")
        if self.state != "probation":
            return None
        self._probation_texts += 1
        if self._floors.agreement is not None and self._recovery.add(lost, positions):
            return self._come_back(f"agreement is above {self._floors.agreement:g} again")
        if self._probation_texts >= PROBATION_TEXTS:
            return self._switch_off(f"{PROBATION_TEXTS} texts did not show that it is above")
        return None

    def add_kl(self, nats: Sequence[float], episode: int) -> str | None:
        """Take in the divergence at each position of a text. Says why the state has changed, if it
        has."""
        found = self.found
        found.kl_positions += len(nats)
        found.kl_nats += sum(nats)
        if episode != self._episode or self.state == "off" or self._kl is None:
            return None
        loss = sum(min(each, KL_CAP_NATS) for each in nats) / KL_CAP_NATS
        if self._kl.add(loss, len(nats)):
            return self._switch_off(f"kl is over {self._floors.kl:g}")
        if (
            self.state == "probation"
            and self._floors.agreement is None
            and self._recovery.add(loss, len(nats))
        ):
            return self._come_back(f"kl is under {self._floors.kl:g} again")
        return None

    @property
    def evidence(self) -> float:
        """How near the tests are to the next change of state, from 0 to 1."""
        if self.state == "off":
            return 0.0
        if self.state == "probation":
            return min(1.0, self._recovery.capital / self._recovery.limit)
        tests = [test for test in (self._agreement, self._kl) if test is not None]
        return max((min(1.0, test.capital / test.limit) for test in tests), default=0.0)

    # -- inside --------------------------------------------------------------------------------

    def _switch_off(self, reason: str) -> str:
        failed = self.state == "probation"
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S) if failed else self._first_rest_s
        self._off_s = self._clock()
        self._begin("off")
        return reason

    def _come_back(self, reason: str) -> str:
        self._begin("on")
        return reason

    def _begin(self, state: State) -> None:
        """A state begins, and its tests with it."""
        floors = self._floors
        self.found.state = state
        self._episode += 1
        self._probation_texts = 0
        self._agreement = None if floors.agreement is None else Detector(1.0 - floors.agreement)
        self._kl = None if floors.kl is None else Detector(floors.kl / KL_CAP_NATS)
        bound = floors.kl if floors.agreement is None else 1.0 - floors.agreement
        self._recovery = Recovery(0.5 if bound is None else bound)


class Watchlist:
    """The watches of an engine, and what has happened to them."""

    def __init__(
        self, floors: Floors, share: float, rest_s: float, clock: Callable[[], float]
    ) -> None:
        self._floors, self._share, self._rest_s, self._clock = floors, share, rest_s, clock
        self._watches: dict[Use, Watch] = {}
        self.events: deque[GuardEvent] = deque(maxlen=MOST_EVENTS)

    def of(self, use: Use) -> Watch | None:
        """The watch over a use; None where there are too many that are switched off."""
        found = self._watches.get(use)
        if found is None:
            if len(self._watches) >= MOST_USES and not self._make_room():
                return None
            found = Watch(use, self._floors, self._share, self._rest_s, self._clock)
            self._watches[use] = found
        if found.rested():
            self.tell(found, "probation", f"it has rested; {PROBATION_SHARE:.1%} try it again")
        return found

    def tell(
        self, watch: Watch, event: Literal["off", "probation", "on"], reason: str | None
    ) -> None:
        """Note and log that a watch has changed its state; nothing if `reason` is None."""
        if reason is None:
            return
        found, names = watch.found, " with ".join(watch.use.techniques)
        of = "" if found.agreement is None else f" (agreement {found.agreement:.4f}"
        of += "" if found.kl is None or not of else f", kl {found.kl:.4g}"
        of += f" over {found.texts} texts)" if of else ""
        said = {"off": "is switched off", "probation": "is on probation", "on": "is on again"}
        level = logging.WARNING if event == "off" else logging.INFO
        log.log(
            level,
            "Guard: %s %s for the workload %s: %s%s.",
            names,
            said[event],
            watch.use.workload,
            reason,
            of,
        )
        self.events.append(
            GuardEvent(
                time_s=time.time(),
                event=event,
                techniques=watch.use.techniques,
                workload=watch.use.workload,
                reason=reason,
            )
        )

    def _make_room(self) -> bool:
        """Forget the use that is on and was asked for least often, if there is one; whether there
        was."""
        on = [use for use, watch in self._watches.items() if watch.state == "on"]
        if on:
            del self._watches[min(on, key=lambda use: self._watches[use].found.requests)]
        return bool(on)

    def found(self) -> list[Guarded]:
        """What was found of each use so far."""
        return [
            msgspec.structs.replace(watch.found, evidence=watch.evidence)
            for watch in self._watches.values()
        ]
