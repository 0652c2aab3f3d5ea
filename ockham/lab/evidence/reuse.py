"""Evidence for what need not be computed again."""

from __future__ import annotations

from random import Random

from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import counterfactual, evidence
from ockham.lab.evidence.row import Row

counterfactual("reuse", "none")

SESSIONS, TURNS, SHARED, NEW = 4, 3, 384, 24
RADIX = (
    "RadixAttention (SGLang, arXiv:2312.07104): up to 6.4 times the throughput of engines without "
    "reuse across calls, on programs whose prompts share prefixes"
)


@evidence("reuse", "prefix")
def prefix(bench: Bench) -> Row:
    """Chats of several turns under one system prompt, each prompt after the answer before it."""
    engines = [bench.engine(reuse="none"), bench.engine(reuse="prefix")]
    prompts = _chats(bench, engines[0])
    wanted = requests(prompts, [greedy(8)] * len(prompts))
    tokens = sum(map(len, prompts))
    return bench.compare(
        "reuse",
        "prefix",
        lambda: _afresh(engines[0], wanted),
        lambda: _afresh(engines[1], wanted),
        lambda outcome: outcome.ledger.prompt_tokens_computed,
        exact=True,
        what=f"{len(prompts)} prompts of {tokens} tokens in all, one after the other, answers of 8 "
        "tokens",
        unit="prompt tokens computed",
        claim=RADIX,
    )


def _chats(bench: Bench, engine: Engine) -> list[list[int]]:
    """The prompts of each turn of each session; of a workload, its first ones."""
    lengths = [SHARED + turn * NEW for turn in range(1, TURNS + 1)] * SESSIONS
    if bench.workload:
        return bench.prompts(engine, lengths)
    rng = Random(f"chats {bench.seed}")
    shared = min(SHARED, engine.max_model_len // 2)
    system = [rng.randrange(engine.vocabulary) for _ in range(shared)]
    prompts = []
    for _ in range(SESSIONS):
        chat = list(system)
        for _ in range(TURNS):
            chat = chat + [rng.randrange(engine.vocabulary) for _ in range(NEW)]
            prompts.append(chat)
    return prompts


def _afresh(engine: Engine, wanted: list[Request]) -> Outcome:
    """Run requests one by one on an engine that knows nothing yet."""
    engine.reuse.forget()
    return run(engine, wanted, at_once=1)
