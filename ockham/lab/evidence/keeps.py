"""Evidence for what becomes of cells that were computed: what it saves to keep fewer of them."""

from __future__ import annotations

from dataclasses import replace

from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, watched
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row

BUDGET = 128
"""Rows of a step: few, so that what a step holds beside what stays is little."""


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
