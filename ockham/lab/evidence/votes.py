"""Evidence for votes over samples."""

from __future__ import annotations

import time
from collections import Counter
from statistics import mean

from ockham.core.errors import ConfigError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case, task_cases
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.lab.tasks.steps import MARK
from ockham.text.pattern import Pattern

TASK, PROBLEMS, SAMPLES, TEMPERATURE = "steps", 48, 10, 0.8
EXTRACT = f"{MARK} (.+)"
WHAT = (
    f"{PROBLEMS} calculations in steps at temperature {TEMPERATURE}: the majority of {SAMPLES} "
    "samples each, against a vote that stops at the probability 0.95"
)
CLAIM = (
    "Adaptive-Consistency (arXiv:2305.11860): up to 7.9 times fewer samples than self-consistency, "
    "with less than 0.1% of accuracy lost on average, over 17 tasks and three language models"
)


@evidence("search", "vote")
def vote(bench: Bench) -> Row:
    """Votes over calculations, against the majority of all samples, and against one sample."""
    engine = bench.engine()
    cases = _cases(engine, bench.seed)
    right: dict[str, float] = {}

    def all_samples() -> Outcome:
        outcome, outputs = _run(engine, cases, {"n": SAMPLES})
        each = zip(*([choice.text for choice in output.outputs] for output in outputs), strict=True)
        right["one"] = mean(_share(cases, list(texts)) for texts in each)
        right["all"] = _share(cases, [_majority(output) for output in outputs])
        return outcome

    def voted() -> Outcome:
        asked = {"samples": SAMPLES, "extract": EXTRACT, "stop": 0.95}
        outcome, outputs = _run(engine, cases, {"vote": asked})
        right["vote"] = _share(cases, [output.outputs[0].text for output in outputs])
        return outcome

    row = bench.compare(
        "search",
        "vote",
        all_samples,
        voted,
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        what=WHAT,
        unit="tokens generated",
        claim=CLAIM,
    )
    row.identical = None  # the one has all samples, the other the majority's
    row.scores = right["all"], right["vote"]
    row.what += f" (one sample is right in {right['one']:.0%} of them)"
    return row


def _cases(engine: Engine, seed: int) -> list[Case]:
    if engine.tokenizer is None:
        raise ConfigError("answers are read from text: a vote is measured with a tokenizer.")
    return task_cases([TASK], PROBLEMS, seed, (), engine.tokenizer, engine.max_model_len).cases


def _run(
    engine: Engine, cases: list[Case], asked: dict[str, object]
) -> tuple[Outcome, list[RequestOutput]]:
    outputs: dict[str, RequestOutput] = {}
    wanted = [
        Request(
            request_id=case.key,
            prompt_token_ids=list(case.tokens),
            params=SamplingParams(
                temperature=TEMPERATURE,
                seed=number,
                max_tokens=case.max_tokens,
                **asked,  # type: ignore[arg-type]
            ),
        )
        for number, case in enumerate(cases)
    ]
    started = time.perf_counter()
    drive(engine, wanted, lambda output: outputs.update({output.request_id: output}))
    ordered = [outputs[case.key] for case in cases]
    return outcome_of(ordered, started), ordered


def _majority(output: RequestOutput) -> str:
    """The first text that gives the answer which most give."""
    pattern = Pattern(EXTRACT)
    answers = [(pattern.last(choice.text) or "").strip() for choice in output.outputs]
    counts = Counter(filter(None, answers))
    if not counts:
        return output.outputs[0].text
    return output.outputs[answers.index(counts.most_common(1)[0][0])].text


def _share(cases: list[Case], texts: list[str]) -> float:
    """Of right answers."""
    scores = [case.score(text) for case, text in zip(cases, texts, strict=True) if case.score]
    return sum(scores) / len(scores)
