"""Evidence for searches over samples and trees: what they take for an answer, and how often it is
right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

from ockham.core.outputs import RequestOutput
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.problems import TEMPERATURE, Problems, is_lab, settings
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.tasks.long_steps import CHECK, FINAL
from ockham.lab.tasks.steps import MARK
from ockham.lab.tasks.word_problems import ANSWER
from ockham.text.pattern import Pattern

LONG, ADAPTER = "long_steps", "lab-long_steps"
ELSEWHERE = "word_problems"
"""The task of a model for which the adapter was not made."""
PROBLEMS, FEW = 14, 7
"""In each round, of all levels alike; of wide trees."""
SAMPLES, HALF, WIDE = 16, 8, 64
TABLE = [15, 16, 7, 4]
"""What `ockham techniques budget lab --task long_steps --lora lab-long_steps --items 140 --loss
0.01` found."""
SELF_CONSISTENCY = f"the majority of {SAMPLES} samples each"


def _what(how: str, than: str = SELF_CONSISTENCY, problems: int = PROBLEMS) -> str:
    return (
        f"{problems} calculations in steps in each round, other ones in each, at temperature "
        f"{TEMPERATURE:g}: {than}, against {how}"
    )


@evidence("search", "vote")
def vote(bench: Bench) -> Row:
    """A vote that stops early, against the majority of all samples, and against one sample."""
    return _against_votes(
        bench,
        "vote",
        {"samples": SAMPLES, "stop": 0.88, "parallel": 1},
        "a vote that draws one sample after the other and stops at the probability 0.88",
        "Adaptive-Consistency (arXiv:2305.11860): up to 7.9 times fewer samples than "
        "self-consistency, with less than 0.1% of accuracy lost on average, over 17 tasks and "
        "three language models",
    )


@evidence("search", "allocate")
def allocate(bench: Bench) -> Row:
    """As many samples as the first four say, against the majority of 16."""
    return _against_votes(
        bench,
        "allocate",
        {"table": TABLE},
        "as many samples as the agreement of the first 4 asks for, by a table that was learned "
        "from other problems",
        "compute-optimal scaling (paper 70, arXiv:2408.03314): more than 4 times the efficiency of "
        "best-of-n, where a verifier tells difficulties",
    )


@evidence("search", "shortest")
def shortest(bench: Bench) -> Row:
    """The three shortest of five samples, against the majority of 16."""
    return _against_votes(
        bench,
        "shortest",
        {"samples": 5, "parallel": 5, "first": 3},
        "the majority of the 3 shortest of 5",
        "short-m@k (paper 299, arXiv:2505.17813): of reasoning models, the shortest of 5 is as "
        "right as the majority of 5 with up to 40% fewer tokens",
    )


@evidence("search", "rpc")
def rpc(bench: Bench) -> Row:
    """Eight samples that count as much as they are probable, against the majority of 16."""
    return _against_votes(
        bench,
        "rpc",
        {"samples": HALF},
        f"{HALF} samples that count as much as they are probable",
        "RPC (paper 190, arXiv:2502.00511): the accuracy of self-consistency with half of its "
        "samples",
    )


@evidence("search", "deepconf")
def deepconf(bench: Bench) -> Row:
    """Samples that are given up where the model is not sure, against the majority of 16."""
    return _against_votes(
        bench,
        "deepconf",
        {"samples": SAMPLES, "warmup": 4, "window": 16},
        f"up to {SAMPLES} samples weighed by confidence, of which those that are less sure than 4 "
        "first ones are given up",
        "DeepConf (arXiv:2508.15260): up to 84.7% fewer tokens than the majority of as many "
        "samples, and as accurate or more so",
    )


@evidence("search", "promising")
def promising(bench: Bench) -> Row:
    """Eight samples of which the less likely are given up early, against the majority of 16."""
    return _against_votes(
        bench,
        "promising",
        {"samples": HALF},
        f"{HALF} samples, of which the likelier half goes on after 32 tokens, and 2 after 64",
        "Adaptive inference-time compute (paper 157, arXiv:2410.02725): half to three quarters of "
        "the samples are given up early with little loss, by a model that was trained to say which",
    )


@evidence("search", "best")
def best(bench: Bench) -> Row:
    """The likeliest of eight samples, against the majority of 16."""
    return _against_votes(
        bench,
        "best",
        {"samples": HALF},
        f"the likeliest of {HALF}",
        "Large Language Monkeys (paper 90, arXiv:2407.21787): coverage grows with samples over "
        "four orders of magnitude, where a checker tells which is right",
    )


@evidence("search", "beam")
def beam(bench: Bench) -> Row:
    """A beam search of eight branches, against the majority of 16 samples."""
    return _against_votes(
        bench,
        "beam",
        {"width": HALF},
        f"a tree of {HALF} branches whose likeliest 2 go on after each line",
        "Compute-optimal scaling (paper 70, arXiv:2408.03314): a search over steps is better than "
        "best-of-n at small budgets and on hard problems, with a trained process reward model",
    )


@evidence("search", "rebase")
def rebase(bench: Bench) -> Row:
    """A reward balanced search of eight branches, against the majority of 16 samples."""
    return _against_votes(
        bench,
        "rebase",
        {"width": HALF},
        f"a tree of {HALF} branches that have children after each line by their likelihood",
        "REBASE (paper 75, arXiv:2408.00724): more accurate than sampling with a vote at each "
        "budget, with a trained process reward model",
    )


@evidence("search", "particles")
def particles(bench: Bench) -> Row:
    """Eight particles, against the majority of 16 samples."""
    return _against_votes(
        bench,
        "particles",
        {"width": HALF},
        f"{HALF} particles that are resampled after each line by their likelihood",
        "Particle filtering (paper 151, arXiv:2502.01618): 4 to 16 times better scaling than beam "
        "search, with a trained process reward model",
    )


@evidence("search", "ets")
def ets(bench: Bench) -> Row:
    """A search that spares state, against the reward balanced one, both of 64 branches."""
    run = _Runs(bench, FEW, bench.engine(**settings(bench), max_num_seqs=WIDE))

    def tree(method: str) -> Outcome:
        search = {"method": method, "width": WIDE, "extract": extract(bench)}
        outcome, outputs = run(method, {"search": search})
        reports = [(output.outputs[0].report or {})[method] for output in outputs]
        return replace(outcome, observed=mean(report["tokens_held"] for report in reports))

    row = bench.compare(
        "search",
        "ets",
        lambda: tree("rebase"),
        lambda: tree("ets"),
        lambda outcome: outcome.observed,
        exact=False,
        what=_what("one that also weighs state and variety", f"rebase with {WIDE} branches", FEW),
        unit="tokens of state held between steps",
        claim="ETS (paper 305, arXiv:2502.13575): 1.8 times less state than REBASE at 1.4 times "
        "the throughput, with minimal loss of accuracy",
    )
    row.identical = None
    run.compare(row, "rebase", "ets")
    return row


@evidence("search", "interim")
def interim(bench: Bench) -> Row:
    """Texts that end when answers in between agree, against whole texts."""
    run = _Runs(bench, PROBLEMS)
    # A model that writes no checks has steps of a line.
    border = f"\n{CHECK}" if run.task == LONG else "\n"
    search = {"method": "interim", "border": border, "write": FINAL, "extract": "(.+)"}
    row = bench.compare(
        "search",
        "interim",
        lambda: run("whole", {})[0],
        lambda: run("interim", {"search": search})[0],
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        what=_what(
            "one that ends when it is sure of an answer, or two agree", "the whole text of each"
        ),
        unit="tokens generated",
        claim="TrimR (paper 282, arXiv:2505.17155): up to 70% of the time of reasoning models with "
        "negligible loss, with a verifier",
    )
    row.identical = None
    run.compare(row, "whole", "interim")
    return row


class _Runs(Problems):
    """Runs of the calculations that the searches are measured on."""

    def __init__(self, bench: Bench, problems: int, engine: Engine | None = None) -> None:
        self.task = LONG if is_lab(bench) else ELSEWHERE
        adapter = ADAPTER if self.task == LONG else ""
        super().__init__(bench, self.task, problems, engine=engine, adapter=adapter)
        self._samples = 0
        self._majority = partial(_majority, extract=extract(bench))

    def all_samples(self) -> Outcome:
        """The majority of all samples; one sample is counted too."""
        number, self._samples = self._samples, self._samples + 1
        outcome, outputs = self("all", {"n": SAMPLES}, self._majority)
        cases = self.cases(number)
        for each in zip(*([c.text for c in output.outputs] for output in outputs), strict=True):
            self.count("one", cases, list(each))
        return outcome


def _against_votes(
    bench: Bench, method: str, asked: Mapping[str, Any], how: str, claim: str
) -> Row:
    """A search against the majority of all samples; how often one sample is right is told too."""
    run = _Runs(bench, PROBLEMS)
    search = {"method": method, "extract": extract(bench), **asked}
    row = bench.compare(
        "search",
        method,
        run.all_samples,
        lambda: run(method, {"search": search})[0],
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        what=_what(how),
        unit="tokens generated",
        claim=claim,
    )
    row.identical = None  # the one has all samples, the other one answer
    run.compare(row, "all", method)
    row.what += f" (one sample is right in {run.right('one'):.0%} of them)"
    return row


def extract(bench: Bench) -> str:
    """What of a text is its answer, of the task that a model is measured on."""
    return f"{MARK} (.+)" if is_lab(bench) else ANSWER


def _majority(output: RequestOutput, extract: str) -> str:
    """The first text that gives the answer which most give."""
    pattern = Pattern(extract)
    answers = [(pattern.last(choice.text) or "").strip() for choice in output.outputs]
    counts = Counter(filter(None, answers))
    if not counts:
        return output.outputs[0].text
    return output.outputs[answers.index(counts.most_common(1)[0][0])].text
