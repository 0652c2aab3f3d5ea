"""Evidence for the techniques that the engine starts with at its other seams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from ockham.core.seams import Candidate, Policy
from ockham.engine.engine import Engine
from ockham.engine.messages import Delta, Request
from ockham.lab.evidence.bench import (
    Bench,
    Outcome,
    greedy,
    grouped_prompts,
    requests,
    run,
    watched,
)
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row

SGLANG = (
    "SGLang (arXiv:2312.07104): up to 6.4 times the throughput on programs that share prefixes, of "
    "its cache and this order together"
)

BUDGET = 128
"""Rows of a step: small, so that the long prompt takes many steps."""


class _OneAfterTheOther:
    """The counterfactual of `fcfs`: the oldest prompt takes all the room that there is."""

    name: ClassVar[str] = "one after the other"
    pressing: ClassVar[bool] = False

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], Candidate] = {}

    def add(self, candidate: Candidate) -> None:
        self._waiting[candidate.order] = candidate

    def remove(self, candidate: Candidate) -> None:
        del self._waiting[candidate.order]

    def begin(self, candidate: Candidate) -> None:
        return None

    def end(self, candidate: Candidate) -> None:
        return None

    def order(
        self,
        fits: Callable[[Candidate], bool],
        waits: Callable[[Candidate], int],
        full: bool,
    ) -> Iterator[Candidate]:
        waiting = [self._waiting[order] for order in sorted(self._waiting)]
        return (each for each in waiting if fits(each) and not waits(each))

    def gives_way(self, candidate: Candidate, running: Sequence[Candidate]) -> Candidate | None:
        return None

    def share(self, prefilling: Sequence[Candidate], budget: int) -> list[int]:
        shares = [0] * len(prefilling)
        for i in sorted(range(len(prefilling)), key=lambda i: prefilling[i].order):
            shares[i] = min(prefilling[i].remaining_prefill, budget)
            budget -= shares[i]
        return shares

    def victim(self, running: Sequence[Candidate]) -> Candidate:
        return max(running, key=lambda candidate: candidate.order)


@evidence("policy", "fcfs")
def fcfs(bench: Bench) -> Row:
    """A short prompt comes right behind a long one: when does it get its first token?"""
    engine = bench.engine(max_num_batched_tokens=BUDGET, scheduling_policy="fcfs")
    own = engine.scheduler.policy
    long = min(2500, engine.max_model_len - 2)
    prompts = bench.prompts(engine, [long, 16])
    wanted = requests(prompts, [greedy(1), greedy(4)])

    def under(policy: Policy) -> Outcome:
        engine.scheduler.policy = policy
        try:
            return _first_token_of_the_last(engine, wanted)
        finally:
            engine.scheduler.policy = own

    return bench.compare(
        "policy",
        "fcfs",
        lambda: under(_OneAfterTheOther()),
        lambda: under(own),
        lambda outcome: outcome.observed,
        exact=True,
        what=f"a prompt of {len(prompts[1])} tokens right behind one of {len(prompts[0])}, "
        f"{BUDGET} rows a step; against giving the oldest prompt all the room",
        unit="milliseconds to the short prompt's first token",
        claim="",
    )


GROUPS, MEMBERS, PREFIX, QUESTION = 4, 12, 384, 16
LPM_POOL_TOKENS = 768


@evidence("policy", "lpm")
def lpm(bench: Bench) -> Row:
    """Requests under a few long prefixes arrive in no order; the pool holds less than two."""
    plain = bench.engine(reuse="none")
    page_bytes = sum(group.page_bytes for group in plain.state.groups)
    tight = {
        "reuse": "prefix",
        "max_num_seqs": 8,
        "max_model_len": min(plain.max_model_len, LPM_POOL_TOKENS),
        "kv_cache_memory_bytes": LPM_POOL_TOKENS // plain.state.page_tokens * page_bytes,
    }
    engines = [bench.engine(**tight, scheduling_policy=name) for name in ("fcfs", "lpm")]
    prompts = grouped_prompts(bench, engines[0], GROUPS, MEMBERS, PREFIX, QUESTION)
    wanted = requests(prompts, [greedy(8)] * len(prompts))

    def afresh(engine: Engine) -> Outcome:
        engine.reuse.forget()
        return run(engine, wanted)

    return bench.compare(
        "policy",
        "lpm",
        lambda: afresh(engines[0]),
        lambda: afresh(engines[1]),
        lambda outcome: outcome.ledger.prompt_tokens_computed,
        exact=True,
        what=f"{len(prompts)} prompts under {GROUPS} prefixes of {PREFIX} tokens, in no order, a "
        f"pool of {LPM_POOL_TOKENS} tokens; against fcfs with prefix reuse",
        unit="prompt tokens computed",
        claim=SGLANG,
    )


def _first_token_of_the_last(engine: Engine, wanted: list[Request]) -> Outcome:
    """Run requests; observed is the time to the last one's first token, in milliseconds."""
    started, first_s = time.perf_counter(), 0.0

    def watch(step: int, deltas: list[Delta]) -> list[Request]:
        nonlocal first_s
        last = [d for d in deltas if d.request_id == wanted[-1].request_id and d.token_ids]
        if last and not first_s:
            first_s = time.perf_counter() - started
        return []

    outcome = watched(engine, wanted, watch)
    return replace(outcome, observed=1e3 * first_s)
