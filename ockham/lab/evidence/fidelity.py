"""How far one engine's predictions are from another's, on the lab's tasks."""

from __future__ import annotations

from collections.abc import Sequence

from ockham.engine.engine import Engine
from ockham.lab.cases import task_cases
from ockham.lab.comparison import Comparing
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.row import Fidelity
from ockham.lab.returning import Query, ask, change, continue_with

ITEMS = 8


def fidelity_of(bench: Bench, one: Engine, other: Engine, items: int = ITEMS) -> Fidelity:
    """What the engine `other` changes, beside `one`, which has the same tokens, on so many
    items of each task, or as many as the suite has time for."""
    items = min(items, bench.suite.compared)
    assert one.tokenizer is not None, "evidence is measured on models with a tokenizer"
    tasks = (*bench.suite.texts, bench.suite.needles)
    cases = task_cases(tasks, items, bench.seed, (), one.tokenizer, one.max_model_len).cases
    with Comparing(cases, [], lambda entry: None) as comparing:
        comparing.baseline(one)
        comparing.candidate(other)
        (whole,) = [d for d in comparing.differences(bench.seed) if d.source is None]
    assert whole.agreement is not None, "some positions were compared"
    assert whole.kl_mean is not None
    assert whole.kl_p99 is not None
    return Fidelity(
        agreement=whole.agreement,
        kl_mean=whole.kl_mean,
        kl_p99=whole.kl_p99,
        positions=whole.positions,
    )


def fidelity_of_answers(engine: Engine, queries: Sequence[Query]) -> Fidelity:
    """What the techniques that queries ask for change, at the tokens that they are answered with
    exactly."""
    answers = ask(engine, queries, approximate=False).answers
    changed = change(engine, continue_with(queries, answers))
    return Fidelity(
        agreement=changed.agreement,
        kl_mean=changed.kl_mean,
        kl_p99=changed.kl_p99,
        positions=changed.positions,
    )
