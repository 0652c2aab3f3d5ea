"""Evidence for what becomes of cells that were computed: what it saves to keep fewer of them."""

from __future__ import annotations

from dataclasses import replace

from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, watched
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.returning import Query, ask, change, continue_with
from ockham.lab.tasks.texts import held_out

BUDGET = 128
"""Rows of a step: few, so that what a step holds beside what stays is little."""

STREAMING = (
    "StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): stable perplexity on texts of up to 4 "
    "million tokens with four sinks and a window, up to 22.2 times as fast as recomputing it"
)
WINDOW, READ, WRITTEN, TEXTS = 256, 1500, 96, 4


@evidence("keep", "all")
def keep_all(bench: Bench) -> Row:
    """Pages that one long sequence holds; only a model with sliding windows can save any."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    long = min(1500, engine.max_model_len - 40)
    (prompt,) = bench.prompts(engine, [long])
    wanted = requests([prompt], [greedy(32)])
    windows = sorted({g.window for g in engine.state.groups if g.window is not None})
    has = f"windows of {', '.join(map(str, windows))}" if windows else "no sliding window"
    return bench.compare(
        "keep",
        "all",
        lambda: _most_pages(engine, wanted, ()),
        lambda: _most_pages(engine, wanted, engine.state.sliding),
        lambda outcome: outcome.observed,
        exact=True,
        what=f"a sequence of {len(prompt)} tokens on a model with {has}; "
        "against keeping every cell",
        unit="pages of state held",
        claim="",
    )


def _most_pages(engine: Engine, wanted: list[Request], sliding: tuple[int, ...]) -> Outcome:
    """Run requests while these groups of layers free what lies before their windows; observed is
    the most pages that were held after any step."""
    most, total = 0, sum(group.pages for group in engine.state.groups)

    def watch(step: int, deltas: list[Delta]) -> list[Request]:
        nonlocal most
        most = max(most, total - sum(engine.state.free_pages()))
        return []

    own, engine.state.sliding = engine.state.sliding, sliding
    try:
        outcome = watched(engine, wanted, watch)
    finally:
        engine.state.sliding = own
    return replace(outcome, observed=float(most))


@evidence("keep", "recent")
def recent(bench: Bench) -> Row:
    """Long texts that are read and continued, of which a window and four sinks stay."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    read = min(READ, engine.max_model_len - WRITTEN - 1)
    queries = [
        Query(prompt, WRITTEN, make_asks({"keep/recent": {"window": WINDOW}}))
        for prompt in _texts(bench, engine, read)
    ]

    def pages(asked: bool) -> Outcome:
        wanted = [query.request(str(number), asked) for number, query in enumerate(queries[:1])]
        for request in wanted:
            request.params = greedy(WRITTEN)
        return _most_pages(engine, wanted, engine.state.sliding)

    row = bench.compare(
        "keep",
        "recent",
        lambda: pages(False),
        lambda: pages(True),
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{WRITTEN} tokens are written after a text of {read}, of all of which the first 4 "
        f"and the latest {WINDOW} stay; fidelity on what is written after {TEXTS} such texts",
        unit="pages of state held",
        claim=STREAMING,
    )
    row.identical = None  # it is approximate: `fidelity` says how much
    changed = change(engine, continue_with(queries, ask(engine, queries, False).answers))
    row.fidelity = Fidelity(
        agreement=changed.agreement,
        kl_mean=changed.kl_mean,
        kl_p99=changed.kl_p99,
        positions=changed.positions,
        perplexity_ratio=changed.perplexity_ratio,
    )
    return row


def _texts(bench: Bench, engine: Engine, tokens: int) -> list[list[int]]:
    """Beginnings of long texts of code that no training read; without a tokenizer, tokens at
    random."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [tokens] * TEXTS)
    passages = held_out()["code"]
    texts = ["\n\n".join(passages[(bench.seed + n) % len(passages) :]) for n in range(TEXTS)]
    return [engine.tokenizer.encode(text, add_special_tokens=False)[:tokens] for text in texts]
