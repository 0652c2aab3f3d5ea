"""Text that returns: what it is, and that what is measured on it is so."""

from __future__ import annotations

import pytest

from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.lab.returning import (
    Query,
    ask,
    change,
    continue_with,
    continued_code,
    edited_code,
    returning_documents,
    workload,
)
from ockham.text.marking import ReuseParams

CHUNK, EDIT = ReuseParams(reuse="chunk"), ReuseParams(reuse="edit")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(
        EngineConfig(reuse="prefix,chunk,edit", max_model_len=1600, kv_cache_memory_bytes=64 << 20)
    )


def test_documents_return_and_questions_do_not(engine: Engine) -> None:
    queries = list(returning_documents(engine.tokenizer, 24, 0, CHUNK))
    again = list(returning_documents(engine.tokenizer, 24, 0, CHUNK))
    assert [q.tokens for q in queries] == [q.tokens for q in again]
    chunks = [q.tokens[a:b] for q in queries for a, b in q.asked["reuse/chunk"].chunks if b > a + 1]
    assert len(set(map(tuple, chunks))) <= 24 < len(chunks)
    assert len({tuple(q.tokens[q.asked["reuse/chunk"].chunks[-1][1] :]) for q in queries}) > 16
    for query in queries:
        assert query.score is not None
        assert query.score("nonsense") == 0.0


def test_chunks_have_the_same_tokens_wherever_they_stand(engine: Engine) -> None:
    """The workload's documents too, whose boundaries are found in its text."""
    queries = list(workload(engine.tokenizer, "documents", {"queries": 12}, 0, CHUNK))
    assert all(len(q.asked["reuse/chunk"].chunks) == 4 for q in queries)
    chunks = {tuple(q.tokens[a:b]) for q in queries for a, b in q.asked["reuse/chunk"].chunks}
    assert len(chunks) <= 24


def test_chunk_reuse_computes_less_and_keeps_the_answers(engine: Engine) -> None:
    queries = list(returning_documents(engine.tokenizer, 32, 0, CHUNK))
    exact, found = (ask(engine, queries, approximate) for approximate in (False, True))
    assert found.ledger.prompt_tokens == exact.ledger.prompt_tokens
    assert found.ledger.prompt_tokens_computed < 0.5 * exact.ledger.prompt_tokens_computed
    assert exact.score > 0.7
    assert found.score > exact.score - 0.1
    changed = change(engine, continue_with(queries, exact.answers))
    assert changed.agreement > 0.95
    assert 0.0 < changed.kl_mean < 0.05


@pytest.mark.skipif(core is None, reason="the reference backend promises no bits")
def test_what_is_computed_again_in_full_changes_nothing(engine: Engine) -> None:
    all_again = ReuseParams(reuse="chunk", recompute_fraction=1.0)
    queries = list(returning_documents(engine.tokenizer, 8, 0, all_again))
    exact, found = (ask(engine, queries, approximate) for approximate in (False, True))
    assert found.answers == exact.answers
    changed = change(engine, continue_with(queries, exact.answers))
    assert (changed.agreement, changed.kl_mean, changed.perplexity_ratio) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("source", ["edit", "code", "typing"])
def test_edited_text_is_computed_where_it_is_new(engine: Engine, source: str) -> None:
    queries: list[Query]
    if source == "edit":
        queries = list(edited_code(engine.tokenizer, 6, 0, EDIT))
    elif source == "code":
        queries = list(continued_code(engine.tokenizer, 3, 0, EDIT, 512))
    else:
        settings = {"sessions": 1, "pauses": 20, "functions_above": 4}
        queries = list(workload(engine.tokenizer, "typing", settings, 0, EDIT))
    exact, found = (ask(engine, queries, approximate) for approximate in (False, True))
    computed = found.ledger.prompt_tokens_computed
    assert computed < 0.7 * exact.ledger.prompt_tokens_computed
    changed = change(engine, continue_with(queries, exact.answers))
    assert changed.positions == sum(len(q.continued) for q in continue_with(queries, exact.answers))
    assert changed.agreement > 0.9
    assert 0.8 < changed.perplexity_ratio < 1.2
