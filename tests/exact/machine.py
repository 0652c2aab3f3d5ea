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
from ockham.core.sampling_params import SamplingParams
from ockham.core.speculative import parse
from ockham.core.thoughts import RepetitionDetectionParams, ThoughtMarks
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.kernels.base import Executor
from tests.helpers.foretelling import foretelling
from tests.helpers.grammars import GRAMMARS
from tests.helpers.searching import Relay, State, let_search

BUDGETS = (1, 3, 16, 64, 256)
DRAFTERS = ["copying", "grammar", "recycling", "trie", "trigram"]
"""Those that need no model of their own."""
EXAMPLES = int(os.environ.get("OCKHAM_EXACT_EXAMPLES", "2"))
"""Of each kind of checkpoint; `make exact` asks for more."""
CHOOSING = {"tokens": 0, "sinks": 0, "local": 1, "dense_layers": 0}
PATTERNS: list[dict[str, Any]] = [
    {"pattern/streaming": {"heads": "all", "sink_blocks": 0, "window_blocks": 1}},
    {"pattern/streaming": {"heads": 0.5, "sink_blocks": 1, "window_blocks": 1}},
    {"pattern/strided": {"local_blocks": 1, "stride": 2, "dense_every": 2}},
    {"pattern/dilated": {"window_blocks": 1}},
    {
        "pattern/triangle": {
            "dense_share": 0,
            "window_blocks": 1,
            "sink_blocks": 0,
            "last_tokens": 9,
        }
    },
    {"pattern/quest": {**CHOOSING, "share": 0.5}},
    {"pattern/quest": {**CHOOSING, "share": 0.5, "every": 4}},
    {"pattern/quest": {**CHOOSING, "first": 70}},
    {"pattern/scan": {**CHOOSING, "share": 0.5, "first": 70, "every": 16}},
    {"pattern/scan": {**CHOOSING, "share": 0.5}},
    {"pattern/xattention": {"threshold": 0.2, "sink_blocks": 0, "last_tokens": 1}},
    {"pattern/minference": {"share": 0.4, "sink_blocks": 0, "last_tokens": 1}},
    {"pattern/minference": {"share": 0.4, "rule": "means", "last_tokens": 30}},
    {"pattern/squeezed": {"context": 70, "share": 0.0, "sinks": 0, "dense_layers": 0}},
    {"pattern/squeezed": {"context": 130, "share": 0.0, "dense_layers": 0, "prompts": True}},
]
"""Approximate, and yet the same bits in any company: by logical index."""
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


def requests(vocabulary: int) -> st.SearchStrategy[dict[str, Any]]:
    """Prompts and parameters, as data that names them completely."""
    return st.fixed_dictionaries(
        {
            "prompt_seed": st.integers(0, 30),
            "prompt_tokens": st.one_of(st.integers(1, 12), st.integers(1, 150)),
            "temperature": st.sampled_from([0.0, 0.7, 1.0, 1.5]),
            "top_p": st.sampled_from([1.0, 0.9]),
            "top_k": st.sampled_from([0, 40]),
            "min_p": st.sampled_from([0.0, 0.0, 0.05]),
            "repetition_penalty": st.sampled_from([1.0, 1.2]),
            "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5]),
            "seed": st.integers(0, 5),
            "max_tokens": st.integers(1, 24),
            "n": st.sampled_from([1, 1, 1, 2, 3]),
            "logprobs": st.sampled_from([None, 3]),
            "prompt_logprobs": st.sampled_from([None, None, None, 1]),
            "greedy": st.sampled_from([False, False, True]),
            "cache_salt": st.sampled_from(["", "", "", "tenant"]),
            "tenant": st.sampled_from(["", "", "one", "two"]),
            "priority": st.sampled_from([0, 0, -1, 3]),
            "cache_hint": st.sampled_from([None, None, "keep", "discard"]),
            "patient": st.booleans(),
            "orderly": st.sampled_from([False, False, True]),
            "grammar": st.sampled_from([None, None, *range(len(GRAMMARS))]),
            "ignore_eos": st.sampled_from([True, True, False]),
            "scored_share": st.sampled_from([0.0, 0.5, 1.0]),
            "skipped": st.sampled_from([None, None, None, [0], [1]]),
            "skipped_part": st.sampled_from(["layer", "attention", "feed_forward"]),
            "approximate": st.sampled_from([None, None, None, *REUSES]),
            "adapter": st.sampled_from([None, None, 0, 1, 2]),
            "pattern": st.sampled_from([None, None, *PATTERNS]),
            "recent": st.sampled_from([None, None, 3, 20]),
            "budget": st.sampled_from([None, None, *KEPT]),
            "thought": st.sampled_from([None, None, *THOUGHTS]),
            "loops": st.sampled_from([None, None, 3]),
            "relay": st.sampled_from([None, None, None, (1, 0), (2, 5), (7,)]),
        }
    )


GREEDY = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "logprobs": None,
    "prompt_logprobs": None,
}
"""What leaves nothing to want but the likeliest token, which the head then finds by itself."""


REUSES = ("chunk", "edit", "kv_prediction")
"""What is taken over approximately."""

THOUGHTS = [
    {"budget": 4, "inside": True},
    {"budget": 0, "inside": True},
    {"budget": 3, "inside": False},
    {"budget": None, "inside": True, "stop_token_ids": list(range(40))},
]
"""Thoughts that their budget ends, and stops that do not."""


KEPT = [
    ("snapkv", {"budget": 0.25, "sinks": 2, "window": 4}),
    ("snapkv", {"budget": 12, "sinks": 2, "window": 4, "block": 16}),
    ("h2o", {"budget": 12, "sinks": 2, "block": 16, "every": 2}),
    ("expected", {"budget": 12, "sinks": 2, "window": 4, "block": 16, "by_output": True}),
    ("kvzap", {"share": 0.2, "sinks": 2, "window": 4, "block": 16}),
    ("locret", {"budget": 24, "sinks": 2, "window": 4, "block": 16}),
    ("duo", {"share": 0.5, "sinks": 2, "window": 4, "block": 16}),
    ("d2o", {"budget": 12, "sinks": 2, "block": 16, "layered": True}),
    ("ems", {"budget": 12, "sinks": 2, "window": 4, "block": 16, "alike": 0.5}),
]
"""Rules that keep some cells by what was seen of them, once and block by block."""

LEARNED = ("kvzap", "locret", "duo")
"""Those of them that are trained for a model."""


ADAPTERS = ("adapter/lora",)
"""Keys of asks that decide what a request says: it says the same alone."""

HOW = ("cache_salt", "tenant", "priority", "cache_hint", "patient", "orderly")
"""What is said of a request beside its prompt and parameters."""


def build(name: str, data: dict[str, Any], vocabulary: int) -> Request:
    values = dict(data)
    rng = np.random.default_rng(values.pop("prompt_seed"))
    # Prompts of one seed share their beginning.
    prompt = rng.integers(0, vocabulary, 150).tolist()[: values.pop("prompt_tokens")]
    if values.pop("greedy"):
        values |= GREEDY
    how = {name: values.pop(name) for name in HOW}
    values.pop("adapter")
    values.pop("relay")
    grammar = values.pop("grammar")
    if grammar is None:
        values["ignore_eos"] = True
    else:
        values["structured_outputs"] = GRAMMARS[grammar]
    thought, loops = values.pop("thought"), values.pop("loops")
    if thought is not None and grammar is None:
        values["thinking_token_budget"] = thought["budget"]
        values["thinking_closing_text"] = "So."
        values["stop_token_ids"] = thought.get("stop_token_ids")
        values["thought"] = ThoughtMarks(open="e", close="zq", inside=thought["inside"])
    if loops is not None:
        found = RepetitionDetectionParams(max_pattern_size=4, min_count=loops)
        values["repetition_detection"] = found
    score_from = max(1, round(len(prompt) * values.pop("scored_share")))
    asks: dict[str, Any] = {}
    skipped = {"layers": values.pop("skipped"), "part": values.pop("skipped_part")}
    if skipped["layers"] is not None and values["approximate"] is None:
        asks["gate/skip_layers"] = skipped
    window = values.pop("recent")
    if window is not None and values["approximate"] is None and values["pattern"] is None:
        asks["keep/recent"] = {"window": window, "sinks": 2, "block": 16}
    budget = values.pop("budget")
    if budget is not None and window is None and values["pattern"] is None:
        rule, settings = budget
        asks |= {f"keep/{rule}": settings} if values["approximate"] is None else {}
    if (reuse := values.pop("approximate")) is not None:
        ends = [*range(20, len(prompt), 20), len(prompt)]
        chunks = list(zip([0, *ends], ends, strict=False)) if reuse == "chunk" else []
        asks[f"reuse/{reuse}"] = {"chunks": chunks} if chunks else True
        prompt = prompt[30:] + prompt[:30] if len(prompt) > 60 else prompt
    if (pattern := values.pop("pattern")) is not None:
        [(label, settings)] = pattern.items()
        if reuse is None or not ({"first", "every"} <= settings.keys() or "squeezed" in label):
            asks |= pattern
    params = SamplingParams(**values)
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=params,
        detokenize=False,
        score_from=score_from,
        **how,
        asks=asks,
    )


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
    patterned = 0
    """Requests so far whose rows left keys out."""
    approximate = 0
    """Requests that asked for approximate reuse, which are not compared."""

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
        self._count_drafts()
        texts = [
            [*self._build(name, asked).prompt_token_ids, *stream.tokens]
            for name, asked in self.asked.items()
            for stream in self.expected[name].values()
        ]
        self.engine.speculation = foretelling(
            self.vocabulary, texts, most=most, seed=seed, right=right, branches=branches
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
        self._count_drafts()
        method = data.draw(st.sampled_from([*DRAFTERS, *sorted(self.trained)]))
        self.engine.speculation = self.engine.make_speculation(
            parse(
                {
                    "method": method,
                    "adaptive": False,
                    "num_speculative_tokens": most,
                    **self.trained.get(method, {}),
                }
            )
        )

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
            if self.asked[name]["approximate"] is None and self.asked[name]["relay"] is None
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
        type(self).approximate += sum(a["approximate"] is not None for a in self.asked.values())
        type(self).patterned += sum(a["pattern"] is not None for a in self.asked.values())
        for name, asked in self.asked.items():
            if name not in self.cancelled and asked["approximate"] is None:
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
        if all(group.window is not None for group in self.engine.state.groups):
            # A budget of cells is refused where every layer's window drops them.
            budgets = {f"keep/{rule}" for rule, _ in KEPT}
            request.asks = {k: v for k, v in request.asks.items() if k not in budgets}
        if self.engine.model.description.without_attention:
            # What is learned of each layer's attention is refused where some have none.
            learned = {f"keep/{rule}" for rule in LEARNED}
            request.asks = {k: v for k, v in request.asks.items() if k not in learned}
        return request

    @property
    def _searches(self) -> dict[str, State]:
        """Of the requests that ask for it, forks of what their branches say."""
        return {
            name: partial(Relay, places=asked["relay"])
            for name, asked in self.asked.items()
            if asked["relay"] is not None
        }

    def _expect(self, name: str, asked: dict[str, Any]) -> Answer:
        """What the request gives alone."""
        request = self._build(name, asked)
        request.asks = {k: ask for k, ask in request.asks.items() if not k.startswith("reuse/")}
        if asked["greedy"]:  # answered by the sampler, from whole logits
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
