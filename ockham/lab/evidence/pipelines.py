"""Evidence for pipelines: a fast text and, only where the model is not sure, a slow program."""

from __future__ import annotations

from typing import TypeAlias

from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.problems import TEMPERATURE, Problems, is_lab
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.steps import MARK

LONG, ADAPTER = "long_steps", "lab-long_steps"
ELSEWHERE = "steps"
PROBLEMS, MORE, SURE = 14, 7, 0.99
_Stage: TypeAlias = dict[str, object]


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
    row.scores = run.right("slow"), run.right("hybrid")
    return row
