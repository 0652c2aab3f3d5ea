"""Evidence for drafting from a part of a long text: one key's word among hundreds."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.core.speculative import parse
from ockham.engine.engine import Engine
from ockham.engine.speculation import Speculation
from ockham.lab.evidence.bench import Bench, greedy, requests
from ockham.lab.evidence.draft_models import drafted
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks import TASKS

RAPID = (
    "RAPID (paper 174): more than twice as fast at long contexts, also with a drafter as large as "
    "the target, and robust beyond 32,000 tokens (LLaMA-3.1 and Qwen2.5)"
)
LENGTHS = (1000, 2000, 4000)
"""Tokens of the texts; the second is the one that is timed."""
QUESTIONS, ANSWERED, DRAFTED = 4, 32, 4


@evidence("drafter", "rapid")
def rapid(bench: Bench) -> Row:
    """The same drafter reads the whole text, or 512 tokens of it; so does the target itself."""
    engine = bench.engine()
    setting = {"adaptive": False, "branches": 1, "num_speculative_tokens": DRAFTED}
    whole, part, itself = (
        engine.make_speculation(parse({**setting, **way}))
        for way in (
            {"method": "draft_model", "model": "lab-drafter"},
            {"method": "rapid", "model": "lab-drafter"},
            {"method": "rapid"},
        )
    )
    texts = {length: questions(bench, engine, length) for length in LENGTHS}
    told = []
    for length, prompts in texts.items():
        if prompts:
            shares = [accepted(engine, prompts, way) for way in (whole, part, itself)]
            told.append(f"{length}: {', '.join(f'{share:.2f}' for share in shares)}")
    timed = texts[LENGTHS[1]] or next(prompts for prompts in texts.values() if prompts)
    wanted = requests(timed, [greedy(ANSWERED)] * len(timed))
    return bench.compare(
        "drafter",
        "rapid",
        lambda: drafted(engine, wanted, whole),
        lambda: drafted(engine, wanted, part),
        lambda outcome: outcome.observed,
        exact=True,
        what=(
            f"{len(timed)} questions for a word in {LENGTHS[1]} tokens, chains of {DRAFTED} by the "
            "lab-drafter, which reads all of them, against 512; accepted for each draft, by "
            "length of the text: reading all, reading 512, and the model itself reading 512: "
            + "; ".join(told)
        ),
        unit="steps of the engine",
        claim=RAPID,
    )


def questions(bench: Bench, engine: Engine, length: int) -> list[list[int]]:
    """Prompts of `recall` of this length, as far as the model's context has room for them."""
    tokenizer, most = engine.tokenizer, engine.max_model_len - ANSWERED
    if bench.workload or tokenizer is None:
        return bench.prompts(engine, [min(length, most)] * QUESTIONS)
    found = []
    for number in range(QUESTIONS):
        item = TASKS["recall"].item(bench.seed, number, "test", level=f"tokens={length}")
        text = tokenizer.apply_chat_template([dict(m) for m in item.messages])
        found.append(tokenizer.encode(text, add_special_tokens=False))
    return [prompt for prompt in found if len(prompt) <= most]


def accepted(engine: Engine, prompts: Sequence[list[int]], way: Speculation) -> float:
    """Drafted tokens that were accepted for each draft."""
    counters = way.counters
    drafts, hits = counters.drafts, counters.accepted
    drafted(engine, requests(prompts, [greedy(ANSWERED)] * len(prompts)), way)
    return (counters.accepted - hits) / max(1, counters.drafts - drafts)
