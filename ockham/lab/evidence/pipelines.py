"""Evidence for pipelines: a fast text and, only where the model is not sure, a slow program."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import combinations
from typing import TypeAlias

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.problems import TEMPERATURE, Problems, is_lab
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks.steps import MARK

LONG, ADAPTER = "long_steps", "lab-long_steps"
ELSEWHERE = "steps"
PROBLEMS, MORE, SURE = 14, 7, 0.99
BEFORE, ASKED, MOST, SAID = 400, 2, 6, 32
FIRST = "One observation that helps here: "
SECOND = "Observations:\n{texts}\nFrom these it follows that "
PLAN, SOLVE = "\n\nThe plan: ", "\n\nThe solution by this plan:\n"
_Stage: TypeAlias = dict[str, object]
STAGES: list[_Stage] = [
    {"op": "generate", "samples": 3, "write": FIRST, "tokens": SAID},
    {"op": "combine", "write": SECOND, "most": MOST, "tokens": SAID},
    {"op": "extend", "write": PLAN, "tokens": SAID},
    {"op": "extend", "write": SOLVE, "tokens": SAID},
]


@evidence("search", "pipeline")
def pipeline(bench: Bench) -> Row:
    """Hybrid thinking, against the slow program for all."""
    task = LONG if is_lab(bench) else ELSEWHERE
    run = Problems(bench, task, PROBLEMS, adapter=ADAPTER if task == LONG else "")
    slow: _Stage = {"op": "generate", "samples": MORE, "add": True}
    vote: _Stage = {"op": "vote"}
    one: _Stage = {"op": "generate"}
    reports: list[dict[str, object]] = []

    def ask(which: str, *stages: _Stage) -> Outcome:
        search = {"method": "pipeline", "stages": list(stages), "extract": f"{MARK} (.+)"}
        outcome, outputs = run(which, {"search": search})
        if which == "hybrid":
            reports.extend((output.outputs[0].report or {})["pipeline"] for output in outputs)
        return outcome

    row = bench.compare(
        "search",
        "pipeline",
        lambda: ask("slow", {**one, "samples": MORE + 1}, vote),
        lambda: ask("hybrid", one, {"op": "sure", "at": SURE}, slow, vote),
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        what="",
        unit="tokens generated",
        claim="HDFlow (paper 119, arXiv:2409.17433): hybrid thinking is the most accurate of the "
        "methods on four benchmarks of reasoning, and thinks slowly only where it needs to",
    )
    share = sum(report["stopped"] != "sure" for report in reports) / len(reports)
    run("one", {})
    row.what = (
        f"{PROBLEMS} calculations in steps in each round, other ones in each, at temperature "
        f"{TEMPERATURE:g}: the majority of {MORE + 1} samples, against one sample where its "
        f"likelihood is at least {SURE}, else {MORE} more ({share:.0%} of them), as the preset "
        f"hybrid does (one sample is right in {run.right('one'):.0%} of the first problems)"
    )
    row.identical = None
    run.compare(row, "slow", "hybrid")
    return row


@evidence("search", "pipeline-forks", "The texts of a pipeline share what they begin with.")
def forks(bench: Bench) -> Row:
    """The stages of plansearch as one request, against each of its texts as a request of its own,
    stage by stage. Of any model: what they say does not count."""
    engine = bench.engine()
    if engine.tokenizer is None:
        raise ConfigError("a pipeline works on texts: this is measured with a tokenizer.")
    prompts = bench.prompts(engine, [BEFORE] * ASKED)
    sides: Counter[str] = Counter()

    def together() -> Outcome:
        sides["together"] += 1
        search = {"method": "pipeline", "stages": STAGES, "parallel": MOST}
        wanted = [
            _request(f"{number}", prompt, 4096, f"one {sides}", search)
            for number, prompt in enumerate(prompts)
        ]
        return _outcome(engine, [[each] for each in wanted])

    def apart() -> Outcome:
        sides["apart"] += 1
        return _apart(engine, prompts, f"each {sides}")

    cached = _apart(bench.engine(reuse="prefix"), prompts, "cached")
    row = bench.compare(
        "search",
        "pipeline-forks",
        apart,
        together,
        lambda outcome: outcome.ledger.rows,
        exact=False,
        what=f"{ASKED} prompts of {BEFORE} tokens, one after the other: 3 observations, what "
        f"follows from {MOST} subsets of them, {MOST} plans and solutions, of {SAID} tokens each, "
        "as one request, against as many requests, stage by stage, without prefix caching (with "
        f"it, they compute {cached.ledger.rows:,} rows)",
        unit="rows computed",
        claim="PlanSearch (paper 58, arXiv:2409.03733): of Claude 3.5 Sonnet, 77.0% of "
        "LiveCodeBench solved in 200 attempts, for 60.6% by repeated sampling",
    )
    row.identical = None  # their noise differs
    return row


def _request(
    name: str,
    prompt: list[int],
    tokens: int,
    salt: str,
    search: dict[str, object] | None = None,
    seed: int = 1,
) -> Request:
    params = SamplingParams(
        temperature=1.0,
        seed=seed,
        max_tokens=tokens,
        ignore_eos=True,
        search=search,  # type: ignore[call-arg]
    )
    return Request(request_id=name, prompt_token_ids=list(prompt), params=params, cache_salt=salt)


def _outcome(engine: Engine, stages: Iterable[list[Request]]) -> Outcome:
    """Run the requests of each stage at once, one stage after the other."""
    outputs: list[RequestOutput] = []
    started = time.perf_counter()
    for wanted in stages:
        drive(engine, wanted, outputs.append)
    return outcome_of(outputs, started)


def _apart(engine: Engine, prompts: list[list[int]], salt: str) -> Outcome:
    """The texts of the same stages as requests of their own."""
    assert engine.tokenizer is not None, "checked before"
    encode = partial(engine.tokenizer.encode, add_special_tokens=False)
    outputs: list[RequestOutput] = []
    started = time.perf_counter()

    def said(begin: list[list[int]]) -> list[str]:
        found: dict[str, RequestOutput] = {}
        wanted = [_request(f"{n}", each, SAID, salt, seed=n) for n, each in enumerate(begin)]
        drive(engine, wanted, lambda output: found.update({output.request_id: output}))
        ordered = [found[f"{n}"] for n in range(len(begin))]
        outputs.extend(ordered)
        return [output.outputs[0].text for output in ordered]

    for prompt in prompts:
        observed = said([[*prompt, *encode(FIRST)]] * 3)
        every = [subset for size in (1, 2) for subset in combinations(observed, size)]
        texts = [
            [*prompt, *encode(SECOND.replace("{texts}", "\n".join(subset)))]
            for subset in every[:MOST]
        ]
        for write in (PLAN, SOLVE):
            follows = said(texts)
            texts = [[*t, *encode(f + write)] for t, f in zip(texts, follows, strict=True)]
        said(texts)
    return outcome_of(outputs, started)
