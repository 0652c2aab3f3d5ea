"""Evidence for searches in which a smaller model writes, too: what they cost, and how often the
answer is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ockham.core.errors import ConfigError
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.problems import Problems, is_lab
from ockham.lab.evidence.recipe import TRAINED, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.probing import PROMPT, probe_settings, train_probe
from ockham.lab.tasks.steps import MARK
from ockham.model.checkpoint.probe_files import write_probe

SMALL, TASK = "lab-small", "steps"
PROBLEMS = 60
"""In each round, of all levels alike."""
ROUTED = 600
"""From which a router learns."""
WHAT = (
    f"{PROBLEMS} calculations in steps in each round, other ones in each, one after the other and "
    "greedily: the model alone, against "
)


@evidence("search", "cascade", only_lab=TRAINED)
def cascade(bench: Bench) -> Row:
    """A small model's answers where it is sure of each token, against the model's alone."""
    return _against_the_model(
        bench,
        "cascade",
        {"by": "least", "sure": 0.9},
        f"{SMALL} where none of its tokens was less likely than 90%",
        "FrugalGPT (arXiv:2305.05176): the accuracy of the best model with up to 98% of the cost "
        "spared, over models that are sold by the token",
    )


@evidence("search", "route", only_lab=TRAINED)
def route(bench: Bench) -> Row:
    """A router that reads the prompt's state gives a problem to one of two models."""
    bench.tell(f"training a router on {ROUTED} problems, other ones than are asked")
    config, _ = probe_settings(SMALL, None)
    probe, worth = train_probe(
        config,
        TASK,
        items=ROUTED,
        samples=2,
        layer=None,
        at=PROMPT,
        temperature=0.5,
        adapter=None,
        seed=bench.seed * 1000 + 999,
        tell=lambda line: None,
    )
    with TemporaryDirectory() as folder:
        write_probe(Path(folder), probe)
        row = _against_the_model(
            bench,
            "route",
            {"sure": 0.7},
            f"{SMALL} for those of which a router said that it is right with a chance of 70%",
            "RouteLLM (arXiv:2406.18665), one of the routers of paper 56: 95% of the quality of "
            "GPT-4 at 15% of its cost, on MT-Bench",
            probes=f"router={folder}",
        )
    row.what += f" (area under the router's curve: {worth.areas[0]:.2f})"
    return row


@evidence("search", "switch", only_lab=TRAINED)
def switch(bench: Bench) -> Row:
    """A small model writes while it is sure of what comes next, against the model alone."""
    return _against_the_model(
        bench,
        "switch",
        {"entropy": 0.1, "window": 1, "stay": 1},
        f"{SMALL} wherever the entropy of the latest token was below 0.1",
        "Entropy Adaptive Decoding (paper 188, arXiv:2502.06833): 96.7% of the accuracy of a model "
        "of 11B parameters with 43% of the tokens from it, the others from one of 1B",
    )


@evidence("search", "step_drafts", only_lab=TRAINED)
def step_drafts(bench: Bench) -> Row:
    """A small model writes steps that the model judges, against the model alone."""
    return _against_the_model(
        bench,
        "step_drafts",
        {"by": "least", "accept": 0.3},
        f"steps of {SMALL} of which the model finds no token less likely than 30%",
        "SpecReason (paper 323, arXiv:2504.07891): 1.5 to 2.5 times as fast and 1% to 9.9% more "
        "accurate, with models of 32B and 1.5B parameters",
    )


@evidence("search", "lent_thought", only_lab=TRAINED)
def lent_thought(bench: Bench) -> Row:
    """A small model writes the calculation and the model the result, against the model alone."""
    return _against_the_model(
        bench,
        "lent_thought",
        {"begin": "", "end": f"\n{MARK}"},
        f"the result from it, and all before that from {SMALL}",
        "ThoughtMani (paper 295, arXiv:2504.13626): 30% fewer tokens of a reasoning model with "
        "the same results, for code",
    )


def _against_the_model(
    bench: Bench,
    method: str,
    settings: Mapping[str, Any],
    how: str,
    claim: str,
    **given: str,
) -> Row:
    """A search in which a small model writes, against the model alone. What share of the tokens
    came from the small one, and how often that is right alone, is told too."""
    if not is_lab(bench):
        raise ConfigError("two models of one vocabulary are measured: the lab's.")
    both = _problems(bench, bench.engine(companions=f"small={SMALL}", **given))
    small = _problems(bench, bench.engine(model=SMALL))
    reports: list[Mapping[str, Any]] = []

    def together() -> Outcome:
        outcome, outputs = both(method, {"search": {"method": method, **settings}})
        reports.extend((output.outputs[0].report or {})[method] for output in outputs)
        return outcome

    row = bench.compare(
        "search",
        method,
        lambda: both("alone", {})[0],
        together,
        lambda outcome: outcome.ledger.weight_bytes / 1e9,
        exact=False,
        what=WHAT + how,
        unit="GB of weights read, of both models",
        claim=claim,
    )
    for _ in range(bench.rounds + 1):  # the problems of all rounds, the uncounted one included
        small("alone", {})
    row.identical = None
    both.compare(row, "alone", method)
    share = sum(map(_taken, reports)) / sum(report["tokens"] for report in reports)
    row.what += (
        f" ({share:.0%} of the tokens are from {SMALL}, which alone is right in "
        f"{small.right('alone'):.0%})"
    )
    return row


def _problems(bench: Bench, engine: Engine) -> Problems:
    return Problems(bench, TASK, PROBLEMS, engine=engine, temperature=0.0, at_once=1)


def _taken(report: Mapping[str, Any]) -> int:
    """How many tokens of an answer are the companion's."""
    if "answered_by" in report:
        return 0 if report["answered_by"] == "model" else int(report["tokens"])
    for name in ("tokens_kept", "tokens_lent", "tokens_of_companion"):
        if name in report:
            return int(report[name])
    return 0
