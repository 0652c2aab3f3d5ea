"""Evidence for what becomes of cells that were computed: what it saves to keep fewer of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ockham.core.errors import ConfigError
from ockham.core.ledger import Ledger
from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, watched
from ockham.lab.evidence.later_questions import QUESTIONS, conversations, score
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.returning import Query, ask, change, continue_with
from ockham.lab.tasks import TASKS
from ockham.lab.tasks.texts import held_out

BUDGET = 128
"""Rows of a step: few, so that what a step holds beside what stays is little."""

STREAMING = (
    "StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): stable perplexity on texts of up to 4 "
    "million tokens with four sinks and a window, up to 22.2 times as fast as recomputing it"
)
SNAPKV = (
    "SnapKV (Li et al. 2024, arXiv:2404.14469): 3.6 times as fast and 8.2 times less memory on "
    "inputs of 16,000 tokens, at comparable scores on 16 data sets"
)
H2O = (
    "H2O (Zhang et al. 2023, arXiv:2306.14048): up to 29 times the throughput of DeepSpeed "
    "Zero-Inference with 20% of the cells, at scores like those of the full cache"
)
WINDOW, READ, WRITTEN, TEXTS = 256, 1500, 96, 4
SINKS, BLOCK = 4, 128
SHARE = 0.25
"""Of the cells that stay where questions are asked."""
KVZAP = (
    "KVzap (Jegou and Jeblick 2026, arXiv:2601.07891): 2 to 4 times fewer cells on Qwen3-8B, "
    "Llama-3.1-8B and Qwen3-32B with negligible loss of accuracy"
)
LOCRET = (
    "Locret (paper 332, arXiv:2410.01805): the state of Phi-3-mini-128K is over 20 times smaller, "
    "that of Llama-3.1-8B over 8 times"
)
LATEST, CHUNK, ASKED = 64, 64, 6
"""Of rules that learn: the latest cells, the tokens between borders, and what is asked."""
BEST = 200
"""Cells of each head."""


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
    return _continued(
        bench,
        engine,
        "recent",
        {"window": WINDOW},
        f"of all of which the first {SINKS} and the latest {WINDOW} stay",
        STREAMING,
    )


@evidence("keep", "snapkv")
def snapkv(bench: Bench) -> Row:
    """Long texts that are continued with the cells that their latest rows look at."""
    return _budgeted(bench, "snapkv", {}, SNAPKV)


@evidence("keep", "h2o")
def h2o(bench: Bench) -> Row:
    """Long texts that are continued with the cells that all their rows look at most."""
    return _budgeted(bench, "h2o", {}, H2O)


def _budgeted(bench: Bench, name: str, settings: dict[str, Any], claim: str) -> Row:
    """A rule with as many cells as `recent` has in its own evidence, and its answers to questions
    with a quarter of the cells, beside `recent` with as many."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    ask = {**settings, "budget": SINKS + WINDOW, "sinks": SINKS, "block": BLOCK}
    kept = f"with {SINKS + WINDOW} cells of each head, chosen every {BLOCK} tokens"
    row = _continued(bench, engine, name, ask, kept, claim)
    asked = conversations(engine, bench.seed)
    whole = score(engine, asked, None)

    def budget(tokens: int) -> dict[str, object]:
        return {f"keep/{name}": {**settings, "budget": SHARE, "until": tokens}}

    def latest(tokens: int) -> dict[str, object]:
        window = int(SHARE * tokens) - SINKS
        return {"keep/recent": {"window": window, "sinks": SINKS, "block": BLOCK}}

    by_rule, by_recent = score(engine, asked, budget), score(engine, asked, latest)
    row.scores, row.later_scores = (whole[0], by_rule[0]), (whole[1], by_rule[1])
    row.what += (
        f"; {len(asked)} first questions and {len(asked) * (QUESTIONS - 1)} later ones, over the "
        f"state that the first left, with {SHARE:.0%} of the cells; recent with as many answers "
        f"{by_recent[0]:.0%} and {by_recent[1]:.0%} of them"
    )
    return row


def _continued(
    bench: Bench, engine: Engine, name: str, ask_of: dict[str, Any], kept: str, claim: str
) -> Row:
    """What it saves and changes to keep some cells of long texts that are read and continued."""
    read = min(READ, engine.max_model_len - WRITTEN - 1)
    queries = [
        Query(prompt, WRITTEN, make_asks({f"keep/{name}": ask_of}))
        for prompt in _texts(bench, engine, read)
    ]

    def pages(asked: bool) -> Outcome:
        wanted = [query.request(str(number), asked) for number, query in enumerate(queries[:1])]
        for request in wanted:
            request.params = greedy(WRITTEN)
        return _most_pages(engine, wanted, engine.state.sliding)

    row = bench.compare(
        "keep",
        name,
        lambda: pages(False),
        lambda: pages(True),
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{WRITTEN} tokens are written after a text of {read}, {kept}; fidelity on what is "
        f"written after {TEXTS} such texts",
        unit="pages of state held",
        claim=claim,
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


@evidence("keep", "kvzap")
def kvzap(bench: Bench) -> Row:
    """One key's word among hundreds, while cells stay whose learned score reaches a threshold."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    asking = {"keep/kvzap": {"share": SHARE, "window": LATEST, "block": CHUNK}}
    queries = [
        replace(query, asked=make_asks(asking)) for query in _questions(engine, bench.seed, ASKED)
    ]

    def run(asked: bool) -> Outcome:
        found = ask(engine, queries, asked)
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "keep",
        "kvzap",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: _attention_flops(engine, outcome.ledger),
        exact=False,
        what=f"{ASKED} questions about lists of about 1,000 tokens, of which the first 4 stay, the "
        f"latest {LATEST}, and those that score like the best {SHARE:.0%} of held-out text",
        unit="FLOPs of attention",
        claim=KVZAP,
    )
    row.identical = None
    asked = conversations(engine, bench.seed)
    whole, by_rule = score(engine, asked, None), score(engine, asked, lambda tokens: asking)
    row.scores, row.later_scores = (whole[0], by_rule[0]), (whole[1], by_rule[1])
    row.what += f"; then {len(asked)} first questions and {len(asked) * (QUESTIONS - 1)} later ones"
    return row


@evidence("keep", "locret")
def locret(bench: Bench) -> Row:
    """Pages that a long text holds, of whose cells the best stay after each chunk."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    asking: dict[str, object] = {"keep/locret": {"budget": BEST, "window": LATEST, "block": CHUNK}}
    read = min(READ, engine.max_model_len - WRITTEN - 1)
    (text, *_) = _texts(bench, engine, read)
    query = Query(text, WRITTEN, make_asks(asking))

    def pages(asked: bool) -> Outcome:
        request = query.request("0", asked)
        request.params = greedy(WRITTEN)
        return _most_pages(engine, [request], engine.state.sliding)

    row = bench.compare(
        "keep",
        "locret",
        lambda: pages(False),
        lambda: pages(True),
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{WRITTEN} tokens are written after a text of {read}, of which each head holds "
        f"{BEST} cells: the first 4, the latest {LATEST}, and those of the highest score",
        unit="pages of state held",
        claim=LOCRET,
    )
    row.identical = None
    asked = conversations(engine, bench.seed)
    whole, by_rule = score(engine, asked, None), score(engine, asked, lambda tokens: asking)
    row.scores, row.later_scores = (whole[0], by_rule[0]), (whole[1], by_rule[1])
    row.what += (
        f"; {len(asked)} first questions over contexts of about 430 tokens, and "
        f"{len(asked) * (QUESTIONS - 1)} later ones"
    )
    return row


def _questions(engine: Engine, seed: int, count: int) -> list[Query]:
    """So many questions of the task `recall`, as far as the model's context has room for them."""
    tokenizer, found = engine.tokenizer, []
    if tokenizer is None:
        raise ConfigError("questions are asked in this measurement, and there is no tokenizer.")
    for number in range(count):
        item = TASKS["recall"].item(seed, number, "test", level="tokens=1000")
        text = tokenizer.apply_chat_template([dict(message) for message in item.messages])
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if len(tokens) + item.max_tokens <= engine.max_model_len:
            found.append(Query(tokens, item.max_tokens, {}, partial(TASKS["recall"].score, item)))
    if not found:
        raise ConfigError(f"a context of {engine.max_model_len} tokens has room for no question.")
    return found


def _attention_flops(engine: Engine, ledger: Ledger) -> int:
    """What attention took: the head's rows are those that gave a token."""
    cost = engine.cost
    products = ledger.rows * cost.linear_flops + ledger.generated_tokens * cost.head_flops
    return ledger.flops - products


def _texts(bench: Bench, engine: Engine, tokens: int) -> list[list[int]]:
    """Beginnings of long texts of code that no training read; without a tokenizer, tokens at
    random."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [tokens] * TEXTS)
    passages = held_out()["code"]
    texts = ["\n\n".join(passages[(bench.seed + n) % len(passages) :]) for n in range(TEXTS)]
    return [engine.tokenizer.encode(text, add_special_tokens=False)[:tokens] for text in texts]
