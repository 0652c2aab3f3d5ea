"""Evidence for what becomes of cells that were computed: what it saves to keep fewer of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, watched
from ockham.lab.evidence.later_questions import (
    QUESTIONS,
    Answers,
    Conversation,
    conversations,
    note,
    score,
)
from ockham.lab.evidence.patterns import attention_flops, questions
from ockham.lab.evidence.recipe import TRAINED, evidence
from ockham.lab.evidence.row import Fidelity, Row
from ockham.lab.returning import Query, ask, change, continue_with
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
EXPECTED = (
    "Expected Attention (Devoto et al. 2025, arXiv:2510.00636): half of the cells of Qwen3-8B at "
    "92.7 in place of 92.9 on RULER at 16,000 tokens, without training"
)
D2O = (
    "D2O (Wan et al. 2024, arXiv:2406.13035): over 3 times the throughput of the full cache, at "
    "scores above those of other rules with as many cells"
)
EMS = (
    "EMS (Li et al. 2024, arXiv:2412.08521): 1.28 points more on LongBench with 256 cells than "
    "other rules, and 95% of needles found with less than 2% of the cells"
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
DUO = (
    "DuoAttention (Xiao et al. 2024, arXiv:2410.10819): 2.55 times less memory and decoding 2.18 "
    "times as fast with multi-head attention, 1.67 and 1.5 times with grouped queries, at scores "
    "close to those of the full cache"
)
STREAM = 0.75
"""Of the heads, in what is timed."""
NEAR: dict[str, object] = {"window": 128, "sinks": 4, "block": 64}
"""What a head that streams holds then."""
NEARER: dict[str, object] = {"window": 16, "sinks": 4, "block": 16}
NEARER_CELLS = 60
"""What it holds where questions are asked, and how many cells that is on the average: up to 63 more
stay, and up to 15 come before the next drop."""


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
    row = _continued(
        bench,
        engine,
        "recent",
        {"window": WINDOW},
        f"of all of which the first {SINKS} and the latest {WINDOW} stay",
        STREAMING,
    )
    asked = conversations(bench, engine)
    note(row, _whole(bench, engine, asked), _latest(bench, engine, asked))
    row.what += f"; questions with {SHARE:.0%} of the cells"
    return row


@evidence("keep", "snapkv")
def snapkv(bench: Bench) -> Row:
    """Long texts that are continued with the cells that their latest rows look at."""
    return _budgeted(bench, "snapkv", {}, SNAPKV)


@evidence("keep", "h2o")
def h2o(bench: Bench) -> Row:
    """Long texts that are continued with the cells that all their rows look at most."""
    return _budgeted(bench, "h2o", {}, H2O)


@evidence("keep", "expected")
def expected(bench: Bench) -> Row:
    """Long texts that are continued with the cells that later rows are expected to look at."""
    return _budgeted(bench, "expected", {}, EXPECTED, [{"floor": 0.2}, {"by_output": True}])


@evidence("keep", "d2o")
def d2o(bench: Bench) -> Row:
    """Long texts that are continued with cells into which what was dropped is merged."""
    return _budgeted(bench, "d2o", {}, D2O)


@evidence("keep", "ems")
def ems(bench: Bench) -> Row:
    """Long texts that are continued with cells that were looked at, and say different things."""
    return _budgeted(bench, "ems", {}, EMS)


def _whole(bench: Bench, engine: Engine, asked: list[Conversation]) -> Answers:
    """What is answered with all cells: every rule is compared with it."""
    return bench.once(f"whole {engine.config!r}", lambda: score(engine, asked, None))


def _latest(bench: Bench, engine: Engine, asked: list[Conversation]) -> Answers:
    """What is answered with the first cells and the latest: a share of all."""

    def latest(tokens: int) -> dict[str, object]:
        window = int(SHARE * tokens) - SINKS
        return {"keep/recent": {"window": window, "sinks": SINKS, "block": BLOCK}}

    return bench.once(f"latest {engine.config!r}", lambda: score(engine, asked, latest))


def _budgeted(
    bench: Bench,
    name: str,
    settings: dict[str, Any],
    claim: str,
    variants: Sequence[dict[str, Any]] = (),
) -> Row:
    """A rule with as many cells as `recent` has in its own evidence, and its answers to questions
    with a quarter of the cells, beside `recent` with as many, and the rule with other settings."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    ask = {**settings, "budget": SINKS + WINDOW, "sinks": SINKS, "block": BLOCK}
    kept = f"with {SINKS + WINDOW} cells of each head, chosen every {BLOCK} tokens"
    row = _continued(bench, engine, name, ask, kept, claim)
    asked = conversations(bench, engine)
    whole = _whole(bench, engine, asked)

    def budget(tokens: int, **more: object) -> dict[str, object]:
        return {f"keep/{name}": {**settings, **more, "budget": SHARE, "until": tokens}}

    by_rule = score(engine, asked, budget)
    by_recent = _latest(bench, engine, asked)
    note(row, whole, by_rule)
    recent_first, recent_later = by_recent.shares
    row.what += (
        f"; {len(asked)} first questions and {len(asked) * (QUESTIONS - 1)} later ones, over the "
        f"state that the first left, with {SHARE:.0%} of the cells; with as many, `recent` answers "
        f"{recent_first:.0%} of the first rightly, and {recent_later:.0%} of the later ones"
    )
    for more in variants:
        first, later = score(engine, asked, partial(budget, **more)).shares
        said = ", ".join(f"{setting}={value}" for setting, value in more.items())
        row.what += f"; with {said} {first:.0%} and {later:.0%}"
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


@evidence("keep", "kvzap", only_lab=TRAINED)
def kvzap(bench: Bench) -> Row:
    """One key's word among hundreds, while cells stay whose learned score reaches a threshold."""
    engine = bench.engine(max_num_batched_tokens=BUDGET)
    asking = {"keep/kvzap": {"share": SHARE, "window": LATEST, "block": CHUNK}}
    queries = [
        replace(query, asked=make_asks(asking))
        for query in questions(bench, engine, bench.seed, ASKED, ["tokens=1000"])
    ]

    def run(asked: bool) -> Outcome:
        found = ask(engine, queries, asked)
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "keep",
        "kvzap",
        lambda: run(False),
        lambda: run(True),
        lambda outcome: attention_flops(engine, outcome.ledger),
        exact=False,
        what=f"{ASKED} questions about lists of about 1,000 tokens, of which the first 4 stay, the "
        f"latest {LATEST}, and those that score like the best {SHARE:.0%} of held-out text",
        unit="FLOPs of attention",
        claim=KVZAP,
    )
    row.identical = None
    asked = conversations(bench, engine)
    whole, by_rule = score(engine, asked, None), score(engine, asked, lambda tokens: asking)
    note(row, whole, by_rule)
    row.what += f"; then {len(asked)} first questions and {len(asked) * (QUESTIONS - 1)} later ones"
    return row


@evidence("keep", "locret", only_lab=TRAINED)
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
    asked = conversations(bench, engine)
    whole, by_rule = score(engine, asked, None), score(engine, asked, lambda tokens: asking)
    note(row, whole, by_rule)
    row.what += (
        f"; {len(asked)} first questions over contexts of about 430 tokens, and "
        f"{len(asked) * (QUESTIONS - 1)} later ones"
    )
    return row


@evidence("keep", "duo", only_lab=TRAINED)
def duo(bench: Bench) -> Row:
    """Bytes that a long text holds, most of whose heads hold its beginning and its latest cells."""
    asking = {"keep/duo": {"share": STREAM, **NEAR}}
    setting = ",".join(f"{name}={value}" for name, value in asking["keep/duo"].items())
    engine = bench.engine(max_num_batched_tokens=BUDGET, keep=f"duo:{setting}")
    whole = bench.engine(max_num_batched_tokens=BUDGET)
    read = min(READ, engine.max_model_len - WRITTEN - 1)
    texts = _texts(bench, engine, read)

    def held(asks: dict[str, Any]) -> Outcome:
        request = Query(texts[0], WRITTEN, make_asks(asks)).request("0", True)
        request.params = greedy(WRITTEN)
        return _most_bytes(engine, request)

    row = bench.compare(
        "keep",
        "duo",
        lambda: held({"keep/all": True}),
        lambda: held(asking),
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{WRITTEN} tokens are written after a text of {read}; {STREAM:.0%} of the key-value "
        f"heads hold the first {NEAR['sinks']} cells and the latest {NEAR['window']}, and "
        f"{len(engine.model.description.apart)} of {engine.own_model.layers} layers have no other "
        "heads: those free their memory; fidelity on what is written after such texts",
        unit="bytes of state held",
        claim=DUO,
    )
    row.identical = None
    queries = [Query(text, WRITTEN, make_asks(asking)) for text in texts]
    changed = change(whole, continue_with(queries, ask(whole, queries, False).answers))
    row.fidelity = Fidelity(
        agreement=changed.agreement,
        kl_mean=changed.kl_mean,
        kl_p99=changed.kl_p99,
        positions=changed.positions,
        perplexity_ratio=changed.perplexity_ratio,
    )
    asked = conversations(bench, whole)

    def streaming(share: float) -> Callable[[int], dict[str, object]]:
        """So large a share of the state, over all heads."""

        def asks(tokens: int) -> dict[str, object]:
            streams = min(1.0, (1.0 - share) / (1.0 - NEARER_CELLS / tokens))
            return {"keep/duo": {"share": streams, **NEARER}}

        return asks

    exact, half = score(whole, asked, None), score(whole, asked, streaming(2 * SHARE))
    quarter = score(whole, asked, streaming(SHARE))
    note(row, exact, half)
    quarter_first, quarter_later = quarter.shares
    row.what += (
        f"; {len(asked)} first questions over contexts of about 430 tokens, and "
        f"{len(asked) * (QUESTIONS - 1)} later ones, with {2 * SHARE:.0%} of the state; with "
        f"{SHARE:.0%} of it {quarter_first:.0%} and {quarter_later:.0%} are answered rightly"
    )
    return row


def _most_bytes(engine: Engine, request: Request) -> Outcome:
    """Run a request; observed is the most bytes of its state that were held after any step."""
    most, groups = 0, engine.state.groups

    def watch(step: int, deltas: list[Delta]) -> list[Request]:
        nonlocal most
        free = engine.state.free_pages()
        pairs = zip(groups, free, strict=True)
        most = max(most, sum((group.pages - left) * group.page_bytes for group, left in pairs))
        return []

    return replace(watched(engine, [request], watch), observed=float(most))


def _texts(bench: Bench, engine: Engine, tokens: int) -> list[list[int]]:
    """Beginnings of long texts of code that no training read; without a tokenizer, tokens at
    random."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [tokens] * TEXTS)
    passages = held_out()["code"]
    texts = ["\n\n".join(passages[(bench.seed + n) % len(passages) :]) for n in range(TEXTS)]
    return [engine.tokenizer.encode(text, add_special_tokens=False)[:tokens] for text in texts]
