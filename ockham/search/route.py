"""Which of several models answers, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import ClassVar

import msgspec

from ockham.core import asks
from ockham.core.cost import StepCost
from ockham.core.errors import ConfigError, InvalidRequest
from ockham.core.numbers import shown
from ockham.core.price import Work, cost_of_work, joules_of
from ockham.core.probe import Probe
from ockham.core.registry import register
from ockham.core.seams import (
    NOTHING,
    Action,
    Branch,
    Companion,
    Continue,
    Finish,
    Observer,
    OwnRows,
    Problem,
    Seen,
    TokenScores,
    Wants,
    Write,
    Writer,
    Written,
)
from ockham.search.structures.pairs import Pair, check_one, fits

_NAME = "route"
MODEL = "model"
"""What a report calls the engine's own model."""
MOST_TOKENS = 1 << 20
_NOTHING = Written([], TokenScores(), "", None)


class RouteOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What holds where a request does not say otherwise.

    The cheapest companion answers of whose prompt state its router, a probe, says that the answer
    will be right with a chance of at least `sure`; else the model does. `router` names the probe;
    None: the only one that fits a companion. `joules` and `seconds` are what an answer of `tokens`
    tokens may take, as it is predicted for a machine of `gflops` (1e9 operations a second) and
    `gbytes` (1e9 bytes a second); whoever would take more is left out. If that is the model, the
    companion answers that has the best chance, or without routers the dearest that is left.
    """

    sure: float = 0.5
    router: str | None = None
    joules: float | None = None
    seconds: float | None = None
    tokens: int = 256
    gflops: float = 100.0
    gbytes: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sure <= 1.0:
            raise ConfigError(f"sure must be above 0 and at most 1, got {self.sure}.")
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ConfigError(f"tokens must lie in [1, {MOST_TOKENS}], got {self.tokens}.")
        for name in ("joules", "seconds", "gflops", "gbytes"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}.")


@register("search", _NAME, exact=False, books=(_NAME,), paper="56")
class Route:
    """The cheapest model answers that is likely to be right, and that a budget allows.

    Routing by a trained router (the survey of paper 56; RouteLLM, Ong et al. 2024,
    arXiv:2406.18665), which reads the state of the prompt that a small model needs anyway; budgets
    of energy and delay per answer are those of MoE^2 (Jin et al. 2025, arXiv:2501.09410, paper
    154): what one costs follows from its shape and the prompt's length alone. `ockham train probe
    MODEL OUT --at prompt` trains a router. `ockham techniques measure search/route` measures it.
    """

    saves: ClassVar[tuple[str, ...]] = ("products",)
    name: ClassVar[str] = _NAME
    needs_companion: ClassVar[bool] = True
    trial: ClassVar[dict[str, float]] = {"joules": 1.0}
    Options: ClassVar[type[RouteOptions]] = RouteOptions
    Ask: ClassVar[type[asks.Ask]] = asks.ask_like(RouteOptions, _NAME, check_one(_NAME))

    def __init__(self, options: RouteOptions) -> None:
        self._options = options

    def begin(self, ask: asks.Ask, problem: Problem) -> Routed | None:
        """See `Search`."""
        if not problem.asked and not fits(problem):
            return None
        ask.check_params(problem.params)
        settings = asks.merged(self._options, ask)
        there = {
            name: each
            for name, each in problem.companions.items()
            if len(problem.prompt) < each.longest
        }
        if not there:
            raise InvalidRequest(
                f"{_NAME} chooses among models, and there is no companion that reads a prompt of "
                f"{len(problem.prompt)} tokens; name one by --companions NAME=MODEL.",
                _NAME,
            )
        probes = {name: _router(settings.router, name, each) for name, each in there.items()}
        if settings.router is not None and not any(probes.values()):
            raise InvalidRequest(
                f"{_NAME}: no companion has a probe {shown(settings.router)}; name one by --probes "
                "NAME=DIRECTORY.",
                _NAME,
            )
        budget = settings.joules is not None or settings.seconds is not None
        if not budget and not any(probes.values()):
            raise InvalidRequest(
                f"{_NAME} needs a router (train one with `ockham train probe MODEL OUT --at "
                "prompt`, and name it by --probes NAME=OUT), or a budget in joules or seconds.",
                _NAME,
            )
        return Routed(settings, problem, there, probes)


def _router(name: str | None, companion_name: str, companion: Companion) -> Probe | None:
    """The router of a companion. Raises InvalidRequest if it could be several."""
    probes = companion.probes
    if name is not None:
        return probes.get(name)
    if len(probes) > 1:
        raise InvalidRequest(
            f"{_NAME}: the companion {companion_name} has several probes; name one of them as "
            f"router: {', '.join(probes)}.",
            _NAME,
        )
    return next(iter(probes.values()), None)


class _Looking(Observer):
    """Reads the state of a prompt's last row."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._wants = Wants(hidden=(probe.facts.layer,), newest=True)
        self.chance: float | None = None

    def wants(self, own: OwnRows) -> Wants:
        return self._wants if own.choosing and self.chance is None else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        if self.chance is None and self._probe.facts.layer in seen.hidden:
            self.chance = float(self._probe(seen.hidden[self._probe.facts.layer])[-1])


class Routed(Pair):
    """One request: whom it is given to."""

    def __init__(
        self,
        settings: RouteOptions,
        problem: Problem,
        there: Mapping[str, Companion],
        probes: Mapping[str, Probe | None],
    ) -> None:
        super().__init__()
        self._settings, self._there, self._probes = settings, there, probes
        work = Work(len(problem.prompt), settings.tokens)
        prices = {name: cost_of_work(each.cost, work) for name, each in there.items()}
        assert problem.cost is not None, "the engine says what its model costs"
        own = cost_of_work(problem.cost, work)
        by_price = sorted(there, key=lambda name: (self._seconds(prices[name]), name))
        self._left = [name for name in by_price if self._affords(prices[name])]
        self._affords_model = self._affords(own)
        self._cheapest = by_price[0]
        self._prices = {**prices, MODEL: own}
        self._writers: dict[str, Writer] = {}
        self._eyes: dict[str, _Looking] = {}
        self._begun: dict[str, Written] = {}
        self._asked: str | None = None
        """Whose answer, or state, is awaited."""
        self._coming: Future[Written] | None = None
        self._who: str | None = None
        """Who answers."""

    def go_on(self, main: Branch) -> list[Action | Finish]:
        """See `Pair`."""
        if main.finish_reason is not None:
            return [self._finish(main)]
        if self._who is not None and self._coming is None:
            return []
        if self._coming is not None:
            if not self._coming.done():
                return []
            written, name = self.taken(self._coming), self._asked
            assert name is not None, "somebody was asked"
            self._coming = None
            if written is None:
                self._left = [each for each in self._left if each != name]
                return self._give(MODEL, main) if self._who else self._look(main)
            if self._who == name:
                return self._said(main, [*self._begun[name].tokens, *written.tokens])
            self._begun[name] = written
            if (self._eyes[name].chance or 0.0) >= self._settings.sure:
                return self._give(name, main)
        return self._look(main)

    # -- inside --------------------------------------------------------------------------------

    def _look(self, main: Branch) -> list[Action | Finish]:
        """Ask the next router; where there is none, decide."""
        for name in self._left:
            if name not in self._begun and self._probes[name] is not None:
                return self._read(name)
        if self._affords_model:
            return self._give(MODEL, main)
        read = [name for name in self._left if name in self._begun]
        if read:
            return self._give(max(read, key=lambda name: self._eyes[name].chance or 0.0), main)
        return self._give(self._left[-1] if self._left else self._cheapest, main)

    def _read(self, name: str) -> list[Action | Finish]:
        """Let a companion read the prompt, and say its first token."""
        probe = self._probes[name]
        assert probe is not None, "only then is it asked"
        self._eyes[name] = _Looking(probe)
        self._writers[name] = self._there[name].open(0, self._eyes[name])
        self._asked, self._coming = name, self._writers[name].go_on(most=1)
        self.await_(self._coming)
        return []

    def _give(self, name: str, main: Branch) -> list[Action | Finish]:
        """This one answers."""
        self._who = name
        for other, writer in self._writers.items():
            if other != name:
                writer.give_up()
        if name == MODEL:
            return [Continue(main.number)]
        begun = self._begun.get(name)
        if begun is None:
            self._writers[name] = self._there[name].open()
            self._begun[name] = begun = _NOTHING
        elif begun.finish_reason is not None:
            return self._said(main, begun.tokens)
        self._asked, self._coming = name, self._writers[name].go_on()
        self.await_(self._coming)
        return []

    def _said(self, main: Branch, tokens: Sequence[int]) -> list[Action | Finish]:
        """A companion's text, which the model goes on with if it is no whole one: the companion may
        have no room for more."""
        return [Write(main.number, tokens), Continue(main.number)]

    def _affords(self, price: StepCost) -> bool:
        settings = self._settings
        if settings.joules is not None and joules_of(price) > settings.joules:
            return False
        return settings.seconds is None or self._seconds(price) <= settings.seconds

    def _seconds(self, price: StepCost) -> float:
        """The longer of the arithmetic and the reading."""
        nbytes = price.weight_bytes + price.state_read_bytes + price.state_written_bytes
        return max(price.flops / self._settings.gflops, nbytes / self._settings.gbytes) * 1e-9

    def _finish(self, main: Branch) -> Finish:
        who = self._who or MODEL
        price = self._prices[who]
        report = self.told(
            answered_by=who,
            chances={
                name: round(each.chance, 4)
                for name, each in self._eyes.items()
                if each.chance is not None
            },
            tokens=main.length,
            predicted_joules=round(joules_of(price), 6),
            predicted_seconds=round(self._seconds(price), 6),
            within_budget=self._affords(price),
        )
        return Finish([main.number], () if who == MODEL else [(0, main.length)], report)
