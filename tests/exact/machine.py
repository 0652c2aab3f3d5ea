"""The exactness machine: random schedules, and each sequence alone as the only right answer.

A hypothesis state machine drives one engine through arrivals, steps under changing token budgets
and thread counts, cancellations and forced preemptions, under any policy, of any tenants and with
hints, true or not; prompts are cut into whatever chunks that gives, choices are forked off their
prompts and branches of a search off each other, trees of right and wrong tokens are drafted and
verified, outputs follow grammars, state moves to memory and disk and back, and requests are
exported and imported in the middle of their work; some leave layers out, and some have only the
state of their latest tokens. Every choice of every request that finishes is compared, token ids and
log probabilities, bit for bit, with the same
request run alone through an engine of one thread that has nothing else to do. One differing bit is
a bug, never a tolerance. Some requests allow approximate reuse: what they say is their own affair,
and must change nothing for the others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ockham.core.outputs import PositionLogprobs
from ockham.core.registry import make, make_asks
from ockham.core.speculative import parse
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.kernels.base import Executor
from tests.exact.drawn import ADAPTERS, KEPT, LEARNED, PARTS, allowed, build, requests
from tests.helpers.foretelling import foretelling
from tests.helpers.searching import Relay, State, let_search

BUDGETS = (1, 3, 16, 64, 256)
DRAFTERS = ["copying", "grammar", "recycling", "trie", "trigram"]
"""Those that need no model of their own."""
EXAMPLES = int(os.environ.get("OCKHAM_EXACT_EXAMPLES", "2"))
"""Of each kind of checkpoint; `make exact` asks for more."""
FEWEST = 3
"""Requests of an example: hypothesis begins with examples in which as little happens as may."""


@dataclass
class Stream:
    """What one choice said so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        self.tokens += delta.token_ids
        self.logprobs += delta.logprobs or []
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason


Answer = dict[int, Stream]


def run_alone(engine: Engine, request: Request) -> Answer:
    """The request's streams with nothing beside it."""
    assert not engine.has_work
    engine.take(request)
    answer: Answer = {}
    while engine.has_work:
        for delta in engine.step():
            answer.setdefault(delta.index, Stream()).add(delta)
    return answer


class ExactnessMachine(RuleBasedStateMachine):
    """Subclasses give the engines: `crowded()` is driven, `alone()` answers. `executors` run the
    same program over the driven engine's state with other numbers of threads."""

    vocabulary: int
    executors: list[Executor]
    trained: dict[str, dict[str, Any]]
    """Settings of drafters that need something trained, by name."""
    adapters: tuple[Path, ...] = ()
    """Directories of those that requests may ask for."""
    compared = 0
    """Choices compared so far by all machines of the class."""
    preempted = 0
    cut = 0
    """Preemptions, forced or not, and cancellations so far."""
    crowded_out = 0
    moved = 0
    drafted = 0
    accepted = 0
    """Tokens of drafts so far."""
    paired = 0
    """Requests so far that two models answer."""
    patterned = 0
    """Requests so far whose rows left keys out."""
    approximate = 0
    """Requests that asked for approximate reuse or acceptance, which are not compared."""

    @classmethod
    def crowded(cls) -> Engine:
        raise AssertionError("a subclass gives the engine")

    @classmethod
    def alone(cls) -> Engine:
        raise AssertionError("a subclass gives the engine")

    @initialize(
        data=st.data(), burst=st.integers(FEWEST, 6), policy=st.sampled_from(["lpm", "fcfs"])
    )
    def start(self, data: st.DataObject, burst: int, policy: str) -> None:
        self.engine = self.crowded()
        assert not self.engine.has_work
        self.engine.scheduler.policy = make("policy", policy)
        self.budget = self.engine.scheduler.most_rows
        self.asked: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, Answer] = {}
        self.expected: dict[str, Answer] = {}
        self.own_speculation = self.engine.speculation
        self.cancelled: set[str] = set()
        self.count = 0
        self.preemptions = self.engine.scheduler.preemptions
        self.arrive(data, burst)

    @rule(data=st.data(), burst=st.integers(1, 5))
    def arrivals(self, data: st.DataObject, burst: int) -> None:
        self.arrive(data, burst)

    def arrive(self, data: st.DataObject, burst: int) -> None:
        for _ in range(burst):
            name = str(self.count)
            self.count += 1
            asked = data.draw(requests(self.vocabulary))
            if name == "0" or asked["approximate"] not in self.engine.approximate:
                asked["approximate"] = None
            if name == "0":
                asked["lenient"] = None
            self.asked[name] = asked
            let_search(self.engine, self._searches)
            self.expected[name] = self._expect(name, asked)
            self.engine.take(self._build(name, asked))

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._take(self.engine.step())

    @rule(budget=st.one_of(st.sampled_from(BUDGETS), st.integers(1, 256)))
    def change_the_token_budget(self, budget: int) -> None:
        self.engine.scheduler.most_rows = min(budget, self.budget)

    @rule(data=st.data())
    def change_the_threads(self, data: st.DataObject) -> None:
        self.engine.executor = data.draw(st.sampled_from(self.executors))

    @rule(
        most=st.integers(1, 12),
        seed=st.integers(0, 99),
        right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        branches=st.integers(1, 4),
    )
    def draft(self, most: int, seed: int, right: float, branches: int) -> None:
        """From now on, verify trees that are right so often."""
        if self.passes > 1:
            return  # its rows are never drafted
        self._count_drafts()
        texts = [
            [*self._build(name, asked).prompt_token_ids, *stream.tokens]
            for name, asked in self.asked.items()
            for stream in self.expected[name].values()
        ]
        self.engine.speculation = foretelling(
            self.vocabulary,
            texts,
            most=most,
            seed=seed,
            page_tokens=self.engine.state.page_tokens if self.engine.recurs else None,
            right=right,
            branches=branches,
        )

    @rule()
    def draft_as_it_pleases(self) -> None:
        self._use_own_drafts()

    @rule(steps=st.integers(4, 30))
    def draft_nothing_for_a_while(self, steps: int) -> None:
        """Steady decoding between drafts, on what they left behind."""
        drafting = self.engine.speculation
        self.engine.speculation = self.engine.make_speculation(parse("none"))
        for _ in range(steps):
            self._take(self.engine.step())
        self.engine.speculation = drafting

    @rule(data=st.data(), most=st.sampled_from([4, 16]))
    def draft_by(self, data: st.DataObject, most: int) -> None:
        """From now on, verify all that one drafter has."""
        if self.passes > 1:
            return
        self._count_drafts()
        parts = PARTS if self.engine.own_model.neurons else {"skip": PARTS["skip"]}
        drafters = [*DRAFTERS, *parts, *sorted(self.trained)]
        method = data.draw(st.sampled_from(drafters))
        part = data.draw(st.sampled_from(PARTS[method])) if method in PARTS else {}
        self.engine.speculation = self.engine.make_speculation(
            parse(
                {
                    "method": method,
                    "adaptive": False,
                    "num_speculative_tokens": most,
                    **self.trained.get(method, {}),
                    **part,
                }
            )
        )

    @property
    def passes(self) -> int:
        """How often the model runs its middle layers."""
        return self.engine.gates.model.passes

    def _use_own_drafts(self) -> None:
        self._count_drafts()
        self.engine.speculation = self.own_speculation

    # What is drawn may not depend on the engine: what it does depends on the time that it takes.
    @rule(which=st.integers(0, 63))
    def cancel(self, which: int) -> None:
        """Any but the first request, so that something is left to compare."""
        scheduler = self.engine.scheduler
        live = sorted({s.request_id for s in (*scheduler.running, *scheduler.waiting)} - {"0"})
        if live:
            name = live[which % len(live)]
            self.cancelled.add(name)
            self._take(self.engine.abort(name))

    @rule(which=st.integers(0, 63))
    def preempt(self, which: int) -> None:
        running = self.engine.scheduler.running
        if running:
            self.engine.scheduler.preempt(running[which % len(running)])

    @rule(which=st.integers(0, 63))
    def move(self, which: int) -> None:
        """Out of the engine as bytes, and in again."""
        scheduler = self.engine.scheduler
        every = {s.request_id for s in (*scheduler.running, *scheduler.waiting)}
        live = sorted(
            name
            for name in every
            if all(self.asked[name][each] is None for each in ("approximate", "relay", "pair"))
        )
        if live:
            name = live[which % len(live)]
            exported = self.engine.export_request(name)
            self.engine.check_integrity()
            assert self.engine.import_request(exported) == name
            type(self).moved += 1

    @rule()
    def crowd_out(self) -> None:
        """Others need every page that no running sequence reads: what was kept goes to the tiers,
        if there are any."""
        if self.passes > 1:
            return  # nothing is kept of its state
        state = self.engine.state
        assert state.reclaim is not None
        state.reclaim([layout.pages for layout in state.groups])
        type(self).crowded_out += 1

    @rule(data=st.data())
    def say_that_state_is_gone(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        request = self._build(name, self.asked[name])
        tokens = np.array(request.prompt_token_ids, np.int32)
        start = data.draw(st.integers(0, len(tokens)))
        self.engine.discard(request, tokens, start)

    @invariant()
    def pages_are_sound(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_work:
            self._take(self.engine.step())
        assert self.engine.stats().pages_used == 0
        self._use_own_drafts()
        self.engine.scheduler.most_rows = self.budget
        type(self).preempted += self.engine.scheduler.preemptions - self.preemptions
        type(self).cut += len(self.cancelled)
        type(self).approximate += sum(
            a["approximate"] is not None or a["lenient"] is not None for a in self.asked.values()
        )
        type(self).patterned += sum(a["pattern"] is not None for a in self.asked.values())
        for name, asked in self.asked.items():
            asks = self._build(name, asked).asks
            type(self).paired += any(key.startswith("search/") for key in asks)
            beside = asked["approximate"] is None and asked["lenient"] is None
            if name not in self.cancelled and beside:
                self._compare(name, asked)

    def _take(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            choices = self.answers.setdefault(delta.request_id, {})
            choices.setdefault(delta.index, Stream()).add(delta)

    def _count_drafts(self) -> None:
        counters = self.engine.speculation.counters
        type(self).drafted += counters.tokens
        type(self).accepted += counters.accepted
        self.engine.speculation.counters = type(counters)()

    def _build(self, name: str, asked: dict[str, Any]) -> Request:
        request, number = build(name, asked, self.vocabulary), asked["adapter"]
        if number is not None and self.adapters:
            path = str(self.adapters[number % len(self.adapters)])
            adapter = make_asks({key: {"name": path, "path": path} for key in ADAPTERS})
            request.asks = {**request.asks, **adapter}
        refused: set[str] = set()
        if all(group.window is not None for group in self.engine.state.groups):
            refused = {rule for rule, _ in KEPT}  # every layer's window drops cells
        elif not self._layers_alike:
            refused = LEARNED
        kept = {k: a for k, a in request.asks.items() if k.removeprefix("keep/") not in refused}
        if not any(self.engine.gates.model.neurons):
            kept.pop("gate/adaptive_width", None)  # experts run whole
        if self.engine.gates.model.read_by_others:
            kept.pop("gate/skip_decode", None)  # it skips layers whose keys others read
        request.asks = allowed(kept, self.passes)
        return request

    @property
    def _layers_alike(self) -> bool:
        """Whether all layers keep keys and values, with as many heads each."""
        groups = [group for group in self.engine.state.groups if group.spec.attends]
        keeping = sum(len(group.layers) for group in groups)
        heads = {group.spec.uniform.heads for group in groups}
        return len(heads) == 1 and keeping == self.engine.model.description.layers

    @property
    def _searches(self) -> dict[str, State]:
        """Of the requests that ask for it, forks of what their branches say."""
        return {
            name: partial(Relay, places=asked["relay"])
            for name, asked in self.asked.items()
            if asked["relay"] is not None and asked["pair"] is None
        }

    def _expect(self, name: str, asked: dict[str, Any]) -> Answer:
        """What the request gives alone."""
        request = self._build(name, asked)
        request.asks = {k: ask for k, ask in request.asks.items() if not k.startswith("reuse/")}
        searched = any(key.startswith("search/") for key in request.asks)
        if asked["greedy"] and not searched:  # answered by the sampler, from whole logits
            request.params = msgspec.structs.replace(request.params, logprobs=0)
        alone = self.alone()
        let_search(alone, self._searches)
        expected = run_alone(alone, request)
        if asked["greedy"]:
            for stream in expected.values():
                stream.logprobs.clear()
        return expected

    def _compare(self, name: str, asked: dict[str, Any]) -> None:
        expected, found = self.expected[name], self.answers[name]
        assert found.keys() == expected.keys()
        for index, stream in expected.items():
            assert found[index] == stream, f"request {name} ({asked}), choice {index}"
            type(self).compared += 1
