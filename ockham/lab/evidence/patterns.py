"""Evidence for patterns of attention: what long texts cost when some heads leave keys out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np

from ockham.core.arrays import Doubles, Floats
from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.registry import make, make_ask, make_asks
from ockham.core.seams import AttentionGroup, Observer, OwnRows, Seen, Wants
from ockham.core.step import Step
from ockham.core.visits import BLOCK_KEYS
from ockham.engine.engine import Engine
from ockham.engine.visiting import put_visits
from ockham.kernels.base import Executor
from ockham.kernels.layout import GroupLayout, StateSpec
from ockham.kernels.reference.choosing import best_scores
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.fidelity import fidelity_of_answers
from ockham.lab.evidence.recipe import OF_NO_MODEL, counterfactual, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, ask
from ockham.lab.tasks import TASKS
from ockham.lab.tasks.suites import LAB

QUESTIONS = 10
"""Of each level, or as many as the suite has time for."""
WATCHED = 4
"""Other questions, by whose attention heads are chosen."""
SINKS, WINDOW = 1, 2
"""Blocks that heads which stream see of these texts, which are short."""
RECALL_EVERY = 15
"""Odd, so that it meets rows of all ages of a choice."""
LSERVE = (
    "LServe (paper 352, arXiv:2502.14866), of half of the heads streaming and pages that are "
    "selected, together: prefill up to 2.9 times and decoding 1.3 to 2.1 times as fast as vLLM"
)

counterfactual("pattern", "full")


QUEST = (
    "Quest (arXiv:2406.10774): attention 7.03 times and decoding 2.23 times as fast, with "
    "negligible loss of accuracy"
)
FFD = (
    "FFD (Faster than Flash, ICML 2026), whose keys are stored as 2 bits and a residual: "
    "generation 1.96 to 2.37 times as fast at 16,384 tokens with 73% of the blocks skipped; RULER "
    "at 32,768 tokens 89.4 against 90.6"
)
CHOSEN_TOKENS = 384
"""Keys that a query reads of these texts: six blocks, four of them chosen."""


@evidence("pattern", "quest")
def quest(bench: Bench) -> Row:
    """One key's word among hundreds, of which each query reads six blocks."""
    return chosen(bench, "quest", QUEST)


@evidence("pattern", "scan")
def scan(bench: Bench) -> Row:
    """One key's word among hundreds, of which each query reads six blocks at most."""
    return chosen(bench, "scan", FFD)


ORACLE_QUESTIONS = 4
"""Of each level: the reference backend takes seconds for each."""


@evidence(
    "pattern",
    "quest-exact",
    "The same against blocks of the exact best scores, as many: what the bounds lose.",
)
def quest_exact(bench: Bench) -> Row:
    """The bounds against an oracle in their place, on the reference backend."""
    engine = bench.engine(backend="reference")
    numbers: dict[str, object] = {"tokens": CHOSEN_TOKENS, "local": 1, "first": 2 * BLOCK_KEYS}
    asks = make_asks({"pattern/quest": numbers})
    queries = [
        Query(q.tokens, q.max_tokens, asks, q.score)
        for q in questions(bench, engine, bench.seed, ORACLE_QUESTIONS)
    ]
    scores: dict[bool, list[float]] = {}

    def run(exact: bool) -> Outcome:
        with best_scores() if exact else nullcontext():
            found = ask(engine, queries, approximate=True)
        scores[exact] = found.scores
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "pattern",
        "quest-exact",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: attention_flops(engine, outcome.ledger),
        exact=False,
        what=(
            f"{len(queries)} questions for a word in {lengths(bench)} tokens; each token "
            f"from token {2 * BLOCK_KEYS} on reads {CHOSEN_TOKENS} keys of each head at most, by "
            "the bounds, and with the exact best score of each 16 keys in their place"
        ),
        unit="FLOPs of attention",
        claim=QUEST,
    )
    row.identical = None
    row.compare_answers(scores[False], scores[True])
    return row


def chosen(
    bench: Bench, name: str, claim: str, every: int = 1, engine: Engine | None = None
) -> Row:
    """Questions whose tokens choose what they read from the end of the first two blocks on: those
    of the prompt too, which is harder than what a request gets that does not ask for that."""
    numbers: dict[str, object] = {"tokens": CHOSEN_TOKENS, "local": 1, "first": 2 * BLOCK_KEYS}
    engine = bench.engine() if engine is None else engine
    return asked(
        bench,
        engine,
        name,
        numbers if every == 1 else {**numbers, "every": every},
        f"each token from token {2 * BLOCK_KEYS} on reads {CHOSEN_TOKENS} keys of each head at "
        "most, but for those of the first two layers"
        + ("" if every == 1 else f"; one token in {every} chooses for those after it"),
        claim,
        label=name if every == 1 else f"{name}-every",
        attention_pattern=engine.config.attention_pattern,
    )


def asked(
    bench: Bench,
    engine: Engine,
    name: str,
    numbers: dict[str, object],
    how: str,
    claim: str,
    query: type[Query] = Query,
    label: str = "",
    **settings: object,
) -> Row:
    """The questions, asked without a pattern and with one of these numbers. `settings` are those
    that the engine was made with. The row is called `label`, or as the pattern is."""
    asks = make_asks({f"pattern/{name}": numbers})
    queries = [
        query(q.tokens, q.max_tokens, asks, q.score)
        for q in questions(bench, engine, bench.seed, min(QUESTIONS, bench.suite.contexts))
    ]
    scores: dict[bool, list[float]] = {}

    def run(approximate: bool) -> Outcome:
        found = ask(engine, queries, approximate)
        scores[approximate] = found.scores
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "pattern",
        label or name,
        lambda: run(False),
        lambda: run(True),
        lambda outcome: attention_flops(engine, outcome.ledger),
        exact=False,
        what=f"{len(queries)} questions for a word in {lengths(bench)} tokens; {how}",
        unit="FLOPs of attention",
        claim=claim,
    )
    row.identical = None  # it is approximate: `fidelity` says how much
    row.fidelity = fidelity_of_answers(engine, queries)
    row.compare_answers(scores[False], scores[True])
    row.recall = recall_of(bench, queries, name, **settings)
    return row


def recall_of(bench: Bench, queries: Sequence[Query], pattern: str, **settings: object) -> float:
    """The share of attention on what a pattern visits, while queries are answered that ask for it:
    of every `RECALL_EVERY`-th row that leaves keys out, over all layers and key-value heads."""
    engine = bench.engine(recall_every=RECALL_EVERY, **settings)
    ledger = ask(engine, queries, approximate=True).ledger
    return ledger.recall[pattern].share


@evidence("pattern", "streaming")
def streaming(bench: Bench) -> Row:
    """One key's word among hundreds, while half of the heads see three blocks of the list."""
    engine = bench.engine()
    heads = _heads_that_look_near(engine, questions(bench, engine, bench.seed + 1, WATCHED))
    return asked(
        bench,
        engine,
        "streaming",
        {"heads": heads, "sink_blocks": SINKS, "window_blocks": WINDOW},
        f"the half of the heads that look least elsewhere see {SINKS} block of {BLOCK_KEYS} keys "
        f"and the latest {WINDOW}",
        LSERVE,
    )


def questions(
    bench: Bench, engine: Engine, seed: int, count: int, levels: Sequence[str] = ()
) -> list[Query]:
    """As many questions for one fact of a long prompt, of each of these levels or of the suite's
    own, as far as the model's context has room for them."""
    tokenizer, found = engine.tokenizer, []
    if tokenizer is None:
        raise ConfigError("questions are asked in this measurement, and there is no tokenizer.")
    task, levels = TASKS[bench.suite.needles], levels or bench.suite.needle_levels
    counted = None if bench.suite is LAB else lambda text: len(tokenizer.encode(text))
    for number in range(len(levels) * count):
        level = levels[number % len(levels)]
        item = task.item(seed, number, "test", level, counted)
        text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) + item.max_tokens <= engine.max_model_len:
            found.append(Query(tokens, item.max_tokens, {}, partial(task.score, item)))
    if not found:
        raise ConfigError(f"a context of {engine.max_model_len} tokens has room for no question.")
    return found


def lengths(bench: Bench) -> str:
    """Tokens of the prompts of `questions`, in words."""
    return " and ".join(level.partition("=")[2] for level in bench.suite.needle_levels)


def attention_flops(engine: Engine, ledger: Ledger) -> int:
    """What attention took: the head's rows are those that gave a token."""
    cost = engine.cost
    products = ledger.rows * cost.linear_flops + ledger.generated_tokens * cost.head_flops
    return ledger.flops - products


class _Looking(Observer):
    """Adds up what each head looks at outside of what it would see if it streamed."""

    def __init__(
        self, groups: Sequence[GroupLayout], outside: dict[tuple[int, int], float]
    ) -> None:
        self._layers = sorted(layer for group in groups for layer in group.layers)
        self._outside = outside

    def wants(self, own: OwnRows) -> Wants:
        return Wants(scores=self._layers)

    def saw(self, own: OwnRows, seen: Seen) -> None:
        for layer, of_rows in seen.scores.items():
            for scores in of_rows:
                block = (scores.shape[1] - 1) // BLOCK_KEYS
                left_out = slice(SINKS * BLOCK_KEYS, (block - WINDOW + 1) * BLOCK_KEYS)
                mass: Doubles = scores[:, left_out].sum(axis=1, dtype=np.float64)
                for head, share in enumerate(mass.tolist()):
                    key = layer, head
                    self._outside[key] = self._outside.get(key, 0.0) + share


def _heads_that_look_near(engine: Engine, queries: Sequence[Query]) -> list[tuple[int, int]]:
    """The half of the heads that look least at what they would not see, while such questions are
    answered."""
    outside: dict[tuple[int, int], float] = {}
    for number, query in enumerate(queries):
        request = query.request(f"watched {number}", approximate=False)
        engine.take(request)
        engine.groups[request.request_id].first.observe(_Looking(engine.state.groups, outside))
        while engine.has_work:
            engine.step()
    return sorted(sorted(outside, key=lambda place: outside[place])[: len(outside) // 2])


def attention_alone(bench: Bench) -> Executor:
    """Layers of nothing but attention, over random keys and values."""
    return attention_of(bench, KEYS, HEADS, KV_HEADS, HEAD_DIM, LAYERS)


def attention_of(
    bench: Bench,
    keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layers: int,
    books: Floats | None = None,
) -> Executor:
    """Layers of nothing but attention, over so many random keys and values in bf16, with codebooks
    if need be (`GroupLayout.books`)."""
    from ockham.kernels.cores import allowed_cores
    from ockham.kernels.cpu import CpuBackend
    from ockham.lab.kernels.attention import attention_program
    from ockham.lab.kernels.state import fill
    from ockham.lab.kernels.steps import PAGE_TOKENS

    shape = (heads, kv_heads, head_dim, head_dim**-0.5, None, None)
    spec = StateSpec.attention(kv_heads, head_dim, "bfloat16")
    pages = -(-keys // PAGE_TOKENS)
    layout = GroupLayout(tuple(range(layers)), spec, pages, PAGE_TOKENS, books=books)
    backend = CpuBackend(bench.config.threads or allowed_cores())
    planes = backend.allocate([layout])
    fill(planes, 0, layout, np.arange(layout.pages * PAGE_TOKENS))
    return backend.bind(attention_program(layers, shape), planes)


KEYS, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 16384, 32, 4, 64, 4
PREFILLED, DECODED = 64, 16
"""Rows of a chunk at the end of the context, and rows that are decoded there."""


@evidence(
    "pattern",
    "streaming-long",
    "The same on random keys and values, at 16,384 tokens: the time of attention alone.",
    OF_NO_MODEL,
)
def streaming_long(bench: Bench) -> Row:
    """A decode and a chunk of a prompt, through layers of nothing but attention."""
    from ockham.lab.kernels.steps import step_over

    executor = attention_alone(bench)
    layers = tuple(range(LAYERS))
    pattern = make("pattern", "streaming:heads=0.5")
    groups = [AttentionGroup(layers, KV_HEADS, None)]
    opened = pattern.open(make_ask("pattern/streaming", True), groups)
    steps: dict[bool, list[Step]] = {}
    for visits in (False, True):
        steps[visits] = [step_over(1, rows, KEYS) for rows in (1, PREFILLED)]
        for step in steps[visits] if visits else ():
            put_visits(step, [(opened, slice(0, step.rows))])

    def run(visits: bool) -> Outcome:
        seconds, keys = 0.0, 0
        for step in steps[visits]:
            under_way = executor.begin(step)
            executor.run(under_way, 0, 2)
            repeats = DECODED if step.rows == 1 else 1
            for place in [2 + 2 * layer for layer in layers] * repeats:
                started = time.perf_counter()
                executor.run(under_way, place, place + 1)
                seconds += time.perf_counter() - started
            high = step.groups[0].keys_seen
            keys += repeats * LAYERS * KV_HEADS * int(high.sum())
            own = step.groups[0].visits
            if own is not None:
                keys -= repeats * own.skipped(slice(0, step.rows), np.zeros_like(high), high).keys
        return Outcome([], Ledger(), seconds, float(keys))

    row = bench.compare(
        "pattern",
        "streaming-long",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: outcome.observed,
        exact=False,
        what=(
            f"{LAYERS} layers of attention alone, {HEADS} query heads over {KV_HEADS}, random keys "
            f"and values of {KEYS} tokens: {DECODED} decodes, and a chunk of {PREFILLED} rows; "
            f"every second head sees {pattern.options.sink_blocks} block of {BLOCK_KEYS} keys and "
            f"the latest {pattern.options.window_blocks}"
        ),
        unit="keys looked at",
        claim=LSERVE,
    )
    row.identical = None
    return row
