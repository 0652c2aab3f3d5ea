"""Evidence for several completions that are made together."""

from __future__ import annotations

import math

from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, greedy, requests, run
from ockham.lab.evidence.recipe import counterfactual, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks.texts import held_out

PROMPTS, BEFORE, COMPLETED, DRAFTS = 12, 300, 16, 3
WHAT = (
    f"{DRAFTS} drafts of {COMPLETED} tokens for each of {PROMPTS} prompts, against as many nucleus "
    "samples (top_p 0.9), one prompt after the other"
)
SUPERPOSED = (
    "Superposed Decoding (paper 88, arXiv:2405.18400): at least 2.44 times as fast for three "
    "drafts or more, and at least as coherent as nucleus sampling"
)


counterfactual("search", "choices")


@evidence("search", "superposed")
def superposed(bench: Bench) -> Row:
    """Completions of code, against as many nucleus samples, one prompt after the other."""
    engine = bench.engine()
    prompts = _prompts(bench, engine)
    together = greedy(COMPLETED, n=DRAFTS, superposed=True)
    sampled = SamplingParams(
        n=DRAFTS, temperature=1.0, top_p=0.9, max_tokens=COMPLETED, ignore_eos=True, seed=0
    )
    outcomes: dict[bool, Outcome] = {}

    def complete(params: SamplingParams) -> Outcome:
        wanted = requests(prompts, [params] * len(prompts))
        outcome = run(engine, wanted, at_once=1)
        outcomes[bool(params.asks)] = outcome
        return outcome

    row = bench.compare(
        "search",
        "superposed",
        lambda: complete(sampled),
        lambda: complete(together),
        lambda outcome: outcome.ledger.rows - sum(map(len, prompts)),
        exact=False,
        what=WHAT,
        unit="rows computed after the prompts",
        claim=SUPERPOSED,
    )
    row.identical = None  # the one is sampled: `perplexity` compares them
    sampled_one, together_one = (
        _perplexity(engine, prompts, outcomes[which].tokens) for which in (False, True)
    )
    row.perplexity = sampled_one, together_one
    return row


def _prompts(bench: Bench, engine: Engine) -> list[list[int]]:
    """Beginnings of code that no training read; without a tokenizer, tokens at random."""
    if bench.workload or engine.tokenizer is None:
        return bench.prompts(engine, [BEFORE] * PROMPTS)
    passages = held_out()["code"]
    texts = [passages[(bench.seed + number) % len(passages)] for number in range(PROMPTS)]
    return [engine.tokenizer.encode(text, add_special_tokens=False)[:BEFORE] for text in texts]


def _perplexity(
    engine: Engine, prompts: list[list[int]], completed: list[list[list[int]]]
) -> float:
    """Of all completions, as the model reads them after their prompts."""
    total = tokens = 0.0
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    for prompt, choices in zip(prompts, completed, strict=True):
        for choice in choices:
            text = prompt + choice
            request = Request(
                request_id="reading",
                prompt_token_ids=text,
                params=params,
                detokenize=False,
                score_from=len(prompt),
            )
            outputs: list[RequestOutput] = []
            drive(engine, [request], outputs.append)
            scored = outputs[0].prompt_logprobs or []
            for token, entry in zip(choice, scored[len(prompt) :], strict=True):
                assert entry is not None, "every token of the completion is scored"
                total, tokens = total - entry[token].logprob, tokens + 1
    return math.exp(total / tokens)
