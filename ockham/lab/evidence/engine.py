"""Evidence for what the engine does by itself: batching, chunking, no padding, forking."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import (
    Bench,
    Outcome,
    greedy,
    grouped_prompts,
    requests,
    run,
    run_batch,
    watched,
)
from ockham.lab.evidence.recipe import ENGINE, evidence
from ockham.lab.evidence.row import Row

AT_ONCE = 8
ORCA = (
    "Orca (OSDI '22): scheduling by iteration instead of by request gave 36.9 times the throughput "
    "of FasterTransformer on GPT-3 175B at the same latency"
)
SARATHI = (
    "Sarathi-Serve (OSDI '24, arXiv:2403.02310): chunked prefill without stalling decodes serves "
    "up to 2.6 times the load of vLLM on Mistral-7B within a latency target"
)
PREPACKING = (
    "Prepacking (paper 266, arXiv:2404.09529): significant gains in speed and memory over "
    "the padded prefill of Hugging Face; its abstract has no figures"
)


@evidence(ENGINE, "continuous-batching", "A finished sequence's place is taken in the next step.")
def continuous_batching(bench: Bench) -> Row:
    """Answers of very different lengths: in static batches, the short ones wait for the longest."""
    engine = bench.engine(max_num_seqs=AT_ONCE)
    rng = Random(f"lengths {bench.seed}")
    lengths = [rng.choice((4, 8, 16, 32, 96)) for _ in range(4 * AT_ONCE)]
    wanted = requests(bench.prompts(engine, [32] * len(lengths)), [greedy(n) for n in lengths])
    return bench.compare(
        ENGINE,
        "continuous-batching",
        lambda: run(engine, wanted, at_once=AT_ONCE),
        lambda: run(engine, wanted),
        lambda outcome: outcome.ledger.weight_bytes,
        exact=True,
        what=f"{len(lengths)} answers of 4 to 96 tokens, {AT_ONCE} at once; "
        "against batches that start together and end with their longest",
        unit="bytes of weights read",
        claim=ORCA,
    )


@evidence(ENGINE, "chunked-prefill", "A long prompt is read in pieces, beside the others' rows.")
def chunked_prefill(bench: Bench) -> Row:
    """A long prompt arrives while others are being answered: how long do they stand still?"""
    budgets = {"whole": 1 << 12, "chunked": 128}
    engines = {
        kind: bench.engine(max_num_batched_tokens=budget) for kind, budget in budgets.items()
    }
    some = engines["whole"]
    long = min(3000, some.max_model_len - 2)
    first, *others = bench.prompts(some, [long] + [16] * 4)
    long = len(first)
    wanted = requests([*others, first], [greedy(48)] * 4 + [greedy(1)])
    return bench.compare(
        ENGINE,
        "chunked-prefill",
        lambda: _interrupted(engines["whole"], wanted),
        lambda: _interrupted(engines["chunked"], wanted),
        lambda outcome: 1e3 * outcome.observed,
        exact=True,
        what=f"a prompt of {long} tokens arrives while 4 answers are written; 128 rows a step "
        "against the whole prompt in one",
        unit="milliseconds that an answer stands still",
        claim=SARATHI,
    )


def _interrupted(engine: Engine, wanted: list[Request]) -> Outcome:
    """The last request arrives after the others have made a few tokens."""
    *early, late = wanted
    last: dict[str, float] = {}
    gap_s = 0.0

    def watch(step: int, deltas: list[Delta]) -> list[Request]:
        nonlocal gap_s
        now = time.perf_counter()
        for delta in deltas:
            if delta.request_id in last and delta.token_ids:
                gap_s = max(gap_s, now - last[delta.request_id])
            last[delta.request_id] = now
        return [late] if step == 8 else []

    outcome = watched(engine, early, watch)
    return replace(outcome, observed=gap_s)


@evidence(ENGINE, "no-padding", "A step is a list of rows; no prompt is filled up to another's.")
def no_padding(bench: Bench) -> Row:
    """Prompts of very different lengths, each read as it is or filled up to the longest."""
    engine = bench.engine()
    rng = Random(f"lengths {bench.seed}")
    longest = min(512, engine.max_model_len - 2)
    lengths = [min(longest, rng.choice((16, 32, 64, 128, 512))) for _ in range(16)]
    prompts = bench.prompts(engine, lengths)
    longest = max(map(len, prompts))
    filled = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    plain = requests(prompts, [greedy(1)] * 16)
    padded = requests(filled, [greedy(1)] * 16)
    return bench.compare(
        ENGINE,
        "no-padding",
        lambda: run(engine, padded),
        lambda: run(engine, plain),
        lambda outcome: outcome.ledger.rows,
        exact=True,
        identical=None,
        what=f"16 prompts of {min(map(len, prompts))} to {longest} tokens; "
        "against as many rows as padding to the longest computes",
        unit="rows computed",
        claim=PREPACKING,
    )


GROUPS, MEMBERS, PREFIX, QUESTION = 4, 24, 384, 16
TIGHT_POOL_TOKENS = 768
BATCHLLM = (
    "BatchLLM (arXiv:2412.03594): 1.1 to 2 times the throughput of vLLM on batches whose prompts "
    "share prefixes"
)


@evidence(ENGINE, "offline-batch", "A batch is planned as a whole: each prefix is computed once.")
def offline_batch(bench: Bench) -> Row:
    """Prompts under a few long prefixes, in no order, through a pool that holds less than two."""
    plain = bench.engine(reuse="none")
    page_tokens = plain.state.page_tokens
    page_bytes = sum(group.page_bytes for group in plain.state.groups)
    tight = {
        "reuse": "prefix",
        "max_num_seqs": 16,
        "max_model_len": min(plain.max_model_len, TIGHT_POOL_TOKENS),
        "kv_cache_memory_bytes": TIGHT_POOL_TOKENS // page_tokens * page_bytes,
    }
    engines = [bench.engine(**tight, scheduling_policy=name) for name in ("fcfs", "lpm")]
    prompts = grouped_prompts(bench, engines[0], GROUPS, MEMBERS, PREFIX, QUESTION)
    wanted = requests(prompts, [greedy(8)] * len(prompts))

    def planned() -> Outcome:
        engines[1].reuse.forget()
        return run_batch(engines[1], wanted)

    def as_they_came() -> Outcome:
        engines[0].reuse.forget()
        return run(engines[0], wanted)

    return bench.compare(
        ENGINE,
        "offline-batch",
        as_they_came,
        planned,
        lambda outcome: outcome.ledger.prompt_tokens_computed,
        exact=True,
        what=f"{len(prompts)} prompts of {sum(map(len, prompts)):,} tokens under {GROUPS} "
        f"prefixes, in no order, 8 tokens each, a pool of {TIGHT_POOL_TOKENS} tokens; against "
        "first come, first served with prefix reuse",
        unit="prompt tokens computed",
        claim=BATCHLLM,
    )


@evidence(ENGINE, "fork", "The choices of a request share the state of its prompt.")
def fork(bench: Bench) -> Row:
    """Several answers to each prompt, against as many requests with that prompt."""
    engine = bench.engine()
    count = 8
    prompts = bench.prompts(engine, [min(256, engine.max_model_len - 20)] * 4)
    forked = requests(prompts, [greedy(16, n=count)] * 4)
    apart = requests([p for p in prompts for _ in range(count)], [greedy(16)] * 4 * count)

    def separate() -> Outcome:
        outcome = run(engine, apart)
        grouped = [
            [choice for (choice,) in outcome.tokens[begin : begin + count]]
            for begin in range(0, len(apart), count)
        ]
        return Outcome(grouped, outcome.ledger, outcome.seconds)

    return bench.compare(
        ENGINE,
        "fork",
        separate,
        lambda: run(engine, forked),
        lambda outcome: outcome.ledger.rows,
        exact=True,
        what=f"{count} answers of 16 tokens to each of 4 prompts; against {count} requests each",
        unit="rows computed",
        claim="Efficient memory sharing of parallel samples: vLLM (SOSP '23, arXiv:2309.06180) "
        "saves 6.1% to 9.8% of the memory of Alpaca's prompts so",
    )
