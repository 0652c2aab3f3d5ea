"""Evidence for threads: what stands on the critical path, beside one text that does all."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

from ockham.core.errors import ConfigError
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.problems import Problems, is_lab
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.parts import THREADS

TASK, ADAPTER = "parts", "lab-threads"
PARTS, PROBLEMS = 4, 10


@evidence("search", "threads")
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
    row.scores = run.right("text"), run.right("threads")
    return row
