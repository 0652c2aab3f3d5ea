"""Evidence for threads: what stands on the critical path, beside one text that does all."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import mean

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.problems import Problems, is_lab
from ockham.lab.evidence.recipe import TRAINED, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks.parts import THREADS

TASK, ADAPTER = "parts", "lab-threads"
PARTS, PROBLEMS = 4, 10
PATHS, PATH, BEFORE, ASKED = 8, 64, 100, 4
ROOM = 16
"""Tokens beside those of a path that a branch may have: its opening needs some."""


@evidence("search", "threads", only_lab=TRAINED)
def threads(bench: Bench) -> Row:
    """Four calculations by threads, against one text that does one after the other."""
    if not is_lab(bench):
        raise ConfigError("threads are measured with the lab model, whose adapter spawns them.")
    run = Problems(bench, TASK, PROBLEMS, adapter=ADAPTER, temperature=0.0, at_once=1)
    search = {"method": "threads", "parallel": PARTS, **THREADS}

    def one_text() -> Outcome:
        outcome, outputs = run("text", {}, levels=(f"parts={PARTS}",))
        return replace(outcome, observed=mean(len(o.outputs[0].token_ids) for o in outputs))

    def spawned() -> Outcome:
        outcome, outputs = run("threads", {"search": search}, levels=(f"threads={PARTS}",))
        reports = [(output.outputs[0].report or {})["threads"] for output in outputs]
        return replace(outcome, observed=mean(each["tokens_critical"] for each in reports))

    row = bench.compare(
        "search",
        "threads",
        one_text,
        spawned,
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{PROBLEMS} problems in each round, other ones in each, one after the other, "
        f"greedily: {PARTS} calculations in one text, against as many threads of a text that "
        f"spawns them, by the adapter {ADAPTER}",
        unit="tokens on the critical path of a problem",
        claim="Adaptive Parallel Reasoning (paper 264, arXiv:2504.15466): on Countdown 83.4% for "
        "60.0% right at a context of 4k, and 75.2% for 57.3% at about 5,000 ms, with a model "
        "trained by reinforcement learning to spawn and join",
    )
    row.identical = None
    run.compare(row, "text", "threads")
    return row


@evidence("search", "threads-paths", "Lines of thought from one prompt are written at once.")
def paths(bench: Bench) -> Row:
    """Eight paths of one prompt, against one text of as many tokens. Of any model: what they say
    does not count."""
    engine = bench.engine()
    if engine.tokenizer is None:
        raise ConfigError("threads are spawned by text: this is measured with a tokenizer.")
    prompts = bench.prompts(engine, [BEFORE] * ASKED)
    marks = {"open": "<think{number}>", "join": "</think", "back": "{text}\n", "go_on": ""}
    settings = {"method": "threads", "paths": PATHS, "parallel": PATHS, "tokens": PATH, **marks}

    def answer(tokens: int, search: dict[str, object] | None) -> Outcome:
        outputs: list[RequestOutput] = []
        params = SamplingParams(
            temperature=1.0,
            seed=1,
            max_tokens=tokens,
            ignore_eos=True,
            search=search,  # type: ignore[call-arg]
        )
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            request = Request(request_id=str(number), prompt_token_ids=list(prompt), params=params)
            drive(engine, [request], outputs.append)
        outcome = outcome_of(outputs, started)
        reports = [(output.outputs[0].report or {}).get("threads") for output in outputs]
        chains = [tokens if report is None else report["tokens_critical"] for report in reports]
        return replace(outcome, observed=mean(chains))

    row = bench.compare(
        "search",
        "threads-paths",
        lambda: answer(PATHS * PATH, None),
        lambda: answer(PATH + ROOM, settings),
        lambda outcome: outcome.observed,
        exact=False,
        what=f"{ASKED} prompts of {BEFORE} tokens, one after the other: {PATHS} paths of {PATH} "
        f"tokens and the first words of a text that would read them, against one text of "
        f"{PATHS * PATH} tokens",
        unit="tokens on the critical path",
        claim="ParaThinker (paper 320, arXiv:2509.04475): 12.3% and 7.5% more accurate than one "
        "chain with 8 paths, for models of 1.5 and 7 billion parameters, at 7.1% more latency",
    )
    row.identical = None
    return row
