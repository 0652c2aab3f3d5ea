"""Evidence for state that is taken over approximately."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ockham.core.errors import ConfigError
from ockham.engine.engine import Engine
from ockham.lab.evidence.bench import Bench, Outcome
from ockham.lab.evidence.fidelity import fidelity_of_answers
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.returning import RETURNING, Query, ask, workload
from ockham.text.marking import ReuseParams
from ockham.text.tokenizer import Tokenizer

QUERIES = 64
TYPING = {"sessions": 1, "pauses": 80, "functions_above": 8}
CACHE_CRAFT = (
    "Cache-Craft (Agarwal et al. 2025, arXiv:2502.15734): computes 51% fewer tokens than prefix "
    "caching, and 75% fewer than without, at 1.6 times the throughput"
)
PIE = (
    "Positional Integrity Encoding (He et al. 2024, arXiv:2407.03157): over 85% less computation "
    "than computing the whole prompt again"
)


@evidence("reuse", "chunk")
def chunk(bench: Bench) -> Row:
    """New questions over documents that return in any order."""
    return _measure(
        bench,
        "chunk",
        lambda tokenizer: RETURNING[bench.suite.name](
            tokenizer, QUERIES, bench.seed, ReuseParams(reuse="chunk")
        ),
        "questions about returning documents, beside prefix reuse; one after the other",
        CACHE_CRAFT,
    )


@evidence("reuse", "edit")
def edit(bench: Bench) -> Row:
    """A file while somebody types in it, and changes something above from time to time."""
    return _measure(
        bench,
        "edit",
        lambda tokenizer: workload(
            tokenizer, "typing", TYPING, bench.seed, ReuseParams(reuse="edit")
        ),
        "pauses while a file is typed, beside prefix reuse; one after the other",
        PIE,
    )


def _measure(
    bench: Bench,
    name: str,
    made: Callable[[Tokenizer], Iterator[Query]],
    what: str,
    claim: str,
) -> Row:
    engine = bench.engine(reuse=f"prefix,{name}")
    queries = _fitting(engine, made)
    scores: dict[bool, list[float]] = {}

    def run(approximate: bool) -> Outcome:
        found = ask(engine, queries, approximate)
        scores[approximate] = found.scores
        return Outcome([[answer] for answer in found.answers], found.ledger, found.seconds)

    row = bench.compare(
        "reuse",
        name,
        lambda: run(False),
        lambda: run(True),
        lambda outcome: outcome.ledger.prompt_tokens_computed,
        exact=False,
        what=f"{len(queries)} {what}",
        unit="prompt tokens computed",
        claim=claim,
    )
    row.what = f"{len(queries)} {what}"  # whatever workload the others are measured on
    row.identical = None  # it is approximate: `fidelity` says how much
    row.fidelity = fidelity_of_answers(engine, queries)
    row.compare_answers(scores[False], scores[True])
    return row


def _fitting(engine: Engine, made: Callable[[Tokenizer], Iterator[Query]]) -> list[Query]:
    """The queries that the model has room for."""
    if engine.tokenizer is None:
        raise ConfigError("text returns in this measurement, and the model has no tokenizer.")
    room = engine.max_model_len
    fitting = [q for q in made(engine.tokenizer) if len(q.tokens) + q.max_tokens <= room]
    if not fitting:
        raise ConfigError(f"no prompt of this measurement fits into a context of {room} tokens.")
    return fitting
