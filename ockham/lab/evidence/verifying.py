"""Evidence for what accepts drafted tokens: how many stay, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ockham.core.registry import make_asks
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.gates import real_texts, scored
from ockham.lab.evidence.real_model import MISSING, NAME
from ockham.lab.evidence.recipe import TRAINED, counterfactual, evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import Query, Run, ask

counterfactual("verifier", "exact_match")

THRESHOLDS = (0.3, 0.05, 0.01)
TIMED = 0.05
"""The threshold of the paper."""
NESTED = "lab-nested"
SPARSE = {"method": "nested", "adaptive": False}
"""A quarter of the neurons drafts."""
SKIPPING = {"method": "skip", "adaptive": False}
CONTINUED, BEGINNING = 48, 64
"""Tokens that follow on the beginning of a text, of so many tokens."""


@dataclass(frozen=True, slots=True)
class Told:
    """What drafts gave: the share of right answers, tokens for each step of the engine, and the
    share of the tokens that the model would have said itself."""

    score: float
    tokens_per_step: float
    own: float
    run: Run
    steps: int

    def __str__(self) -> str:
        right = "" if self.score != self.score else f", {self.score:.0%} of the answers right"
        return (
            f"{self.tokens_per_step:.2f} tokens a step, {self.own:.1%} of them the model's own"
            f"{right}"
        )


@evidence("verifier", "lenient", only_lab=TRAINED)
def lenient(bench: Bench) -> Row:
    """Drafts of the first quarter of the neurons, accepted where the model finds them likely."""
    engine = bench.engine(model=NESTED, speculative_config=SPARSE)
    queries = scored(bench, engine)
    exact, *others = (_told(engine, queries, each) for each in (None, *THRESHOLDS))
    found = "; ".join(
        f"from {threshold:g} on: {told}" for threshold, told in zip(THRESHOLDS, others, strict=True)
    )
    row = bench.compare(
        "verifier",
        "lenient",
        lambda: _answered(engine, queries, None),
        lambda: _answered(engine, queries, TIMED),
        lambda outcome: outcome.observed,
        exact=False,
        identical=None,
        what=f"answers to {' and '.join(bench.suite.written)} by {NESTED}, one after the other, a "
        f"quarter of whose neurons drafts up to 16 tokens, all of which are verified. Without it: "
        f"{exact}. With a threshold of the probability {found}",
        unit="steps of the engine",
        scores=(exact.score, others[THRESHOLDS.index(TIMED)].score),
        claim="Sirius (paper 112, arXiv:2409.03856): Llama 3 8B with 65% of the neurons answers "
        "38.4% of GSM8K, 70.5% with corrections and 75.4% whole; about 20% less latency",
        model=NESTED,
        real_model=MISSING,
    )
    if bench.real_model is not None:
        real = bench.engine(
            model=str(bench.real_model), tokenizer=None, speculative_config=SKIPPING
        )
        texts = [Query(text[:BEGINNING], CONTINUED, {}) for text in real_texts(real)]
        told = "; ".join(
            f"{'without it' if each is None else f'from {each:g} on'}: {_told(real, texts, each)}"
            for each in (None, *THRESHOLDS)
        )
        row.real_model = NAME
        row.what += f". Texts that {NAME} goes on with, drafted without a quarter of it, {told}"
    return row


def _told(engine: Engine, queries: list[Query], threshold: float | None) -> Told:
    asked = {} if threshold is None else make_asks({"verifier/lenient": {"threshold": threshold}})
    before = engine.scheduler.steps
    run = ask(engine, [replace(query, asked=asked) for query in queries], True)
    steps = engine.scheduler.steps - before
    tokens = sum(map(len, run.answers))
    kept = run.ledger.saved.get("lenient")
    own = 1 - (0 if kept is None else kept.tokens) / tokens
    return Told(run.score, tokens / steps, own, run, steps)


def _answered(engine: Engine, queries: list[Query], threshold: float | None) -> Outcome:
    """What it takes to answer. Observed is the number of steps."""
    told = _told(engine, queries, threshold)
    answers = [[answer] for answer in told.run.answers]
    return Outcome(answers, told.run.ledger, told.run.seconds, float(told.steps))
