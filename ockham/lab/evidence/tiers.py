"""Evidence for the tiers below the pool: state on disk, and in memory beside it."""

from __future__ import annotations

import tempfile
import weakref
from random import Random

from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import ENGINE, evidence
from ockham.lab.evidence.row import Row

PROMPTS, TOKENS = 4, 1024
FEW, LONG = 6, 160
COMMON = "common knowledge; no paper's figures are compared with"


@evidence(ENGINE, "store", "Prompts' state is on disk, and found there after a restart.")
def store(bench: Bench) -> Row:
    """The same prompts with an empty pool, as after a restart: computed, or read from disk."""
    plain = bench.engine(reuse="prefix")
    stored = _with_store(bench)
    wanted = requests(_prompts(bench, plain, PROMPTS, TOKENS), [greedy(8)] * PROMPTS)
    run(stored, wanted)
    assert stored.tiers is not None
    assert stored.tiers.writer is not None
    stored.tiers.writer.flush(60.0)
    return bench.compare(
        ENGINE,
        "store",
        lambda: _emptied(plain, wanted),
        lambda: _emptied(stored, wanted),
        lambda outcome: outcome.ledger.prompt_tokens_computed,
        exact=True,
        what=f"{PROMPTS} prompts of {len(wanted[0].prompt_token_ids)} tokens, answers of 8, one "
        "after the other with an empty pool",
        unit="prompt tokens computed",
        claim=COMMON,
    )


@evidence(ENGINE, "store-writing", "What is computed is written to disk beside the steps.")
def store_writing(bench: Bench) -> Row:
    """New prompts, which are of no use to each other: what writing them all costs."""
    engines = [bench.engine(reuse="prefix"), _with_store(bench)]
    rounds = iter(range(1000))

    def fresh(engine: Engine) -> Outcome:
        engine.reuse.forget()
        rng = Random(f"writing {bench.seed} {next(rounds) // 2}")
        return run(engine, _random(engine, rng, PROMPTS, TOKENS))

    row = bench.compare(
        ENGINE,
        "store-writing",
        lambda: fresh(engines[0]),
        lambda: fresh(engines[1]),
        lambda outcome: outcome.ledger.rows,
        exact=True,
        what=f"{PROMPTS} new prompts of {TOKENS} tokens at once, answers of 8; all is written",
        unit="rows computed",
        claim=COMMON,
    )
    row.identical = None  # other prompts in every round
    return row


@evidence(ENGINE, "swap", "What the pool lets go of waits in memory and is copied back.")
def swap(bench: Bench) -> Row:
    """More sequences than the pool has room for: those preempted compute again, or come back."""
    whole = bench.engine(reuse="prefix").state
    page_bytes = sum(group.page_bytes for group in whole.groups)
    pages = -(-(2 * (TOKENS // 4 + LONG)) // whole.page_tokens)
    tight = {"reuse": "prefix", "kv_cache_memory_bytes": pages * page_bytes}
    engines = [bench.engine(**tight), bench.engine(**tight, swap_space=0.25)]
    prompts = _prompts(bench, engines[0], FEW, TOKENS // 4)
    wanted = requests(prompts, [greedy(LONG)] * FEW)
    return bench.compare(
        ENGINE,
        "swap",
        lambda: _emptied(engines[0], wanted, at_once=FEW),
        lambda: _emptied(engines[1], wanted, at_once=FEW),
        lambda outcome: sum(waste.tokens for waste in outcome.ledger.wasted.values()),
        exact=True,
        what=f"{FEW} sequences of {TOKENS // 4} + {LONG} tokens in a pool for two",
        unit="rows computed again after a preemption",
        claim=COMMON,
    )


def _with_store(bench: Bench) -> Engine:
    directory = tempfile.TemporaryDirectory(prefix="ockham-kv-")
    engine = bench.engine(reuse="prefix", kv_store=directory.name)
    weakref.finalize(engine, directory.cleanup)
    return engine


def _prompts(bench: Bench, engine: Engine, count: int, tokens: int) -> list[list[int]]:
    return bench.prompts(engine, [min(tokens, engine.max_model_len - LONG - 1)] * count)


def _random(engine: Engine, rng: Random, count: int, tokens: int) -> list[Request]:
    tokens = min(tokens, engine.max_model_len - LONG - 1)
    prompts = [[rng.randrange(engine.vocabulary) for _ in range(tokens)] for _ in range(count)]
    return requests(prompts, [greedy(8)] * count)


def _emptied(engine: Engine, wanted: list[Request], at_once: int = 1) -> Outcome:
    """Run requests on an engine whose pool holds nothing yet."""
    engine.reuse.forget()
    return run(engine, wanted, at_once=at_once)
