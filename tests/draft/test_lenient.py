"""Drafted tokens that stay because the model finds them likely enough."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import ConfigError, InvalidRequest

PROMPT = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return"
DRAFTING: dict[str, Any] = {"method": "skip", "layers": [2, 3, 4, 5], "adaptive": False}
"""A poor drafter, whose drafts follow from the text alone."""


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 48, "ignore_eos": True, **fields})


def lenient(threshold: float, **fields: Any) -> SamplingParams:
    return params(lenient={"threshold": threshold}, **fields)


@pytest.fixture(scope="module")
def drafting() -> LLM:
    return LLM("lab", speculative_config=DRAFTING, reuse="none")


def test_likely_drafts_stay_and_are_booked(drafting: LLM) -> None:
    [exact], [kept] = (drafting.generate(PROMPT, each) for each in (params(), lenient(0.01)))
    assert "lenient" not in exact.ledger.saved
    assert kept.ledger.saved["lenient"].tokens > 0
    assert kept.outputs[0].token_ids != exact.outputs[0].token_ids


def test_a_certain_draft_alone_stays_at_a_threshold_of_one(drafting: LLM) -> None:
    [exact], [kept] = (drafting.generate(PROMPT, each) for each in (params(), lenient(1.0)))
    assert kept.outputs[0].token_ids == exact.outputs[0].token_ids


def test_no_token_is_less_likely_than_the_threshold_but_drawn_ones(drafting: LLM) -> None:
    threshold = 0.01
    [kept] = drafting.generate(PROMPT, lenient(threshold, logprobs=0))
    assert kept.outputs[0].logprobs is not None
    others = 0
    for token, entry in zip(kept.outputs[0].token_ids, kept.outputs[0].logprobs, strict=True):
        found = entry[token]
        assert found.rank == 1 or found.logprob >= math.log(threshold)
        others += found.rank != 1
    assert others == kept.ledger.saved["lenient"].tokens


def test_the_same_request_gives_the_same_tokens_where_drafts_follow_from_the_text(
    drafting: LLM,
) -> None:
    asked = lenient(0.05, temperature=0.8, seed=3)
    first, second = (drafting.generate(PROMPT, asked)[0].outputs[0].token_ids for _ in range(2))
    assert first == second


def test_requests_beside_it_stay_exact(drafting: LLM) -> None:
    plain = params()
    [alone] = drafting.generate(PROMPT, plain)
    beside = drafting.generate([PROMPT, PROMPT, PROMPT], [lenient(0.01), plain, lenient(0.3)])
    assert beside[1].outputs[0].token_ids == alone.outputs[0].token_ids


def test_a_setting_holds_for_all_who_ask_for_nothing_else() -> None:
    with LLM("lab", speculative_config=DRAFTING, verifier="lenient:threshold=0.01") as llm:
        [kept] = llm.generate(PROMPT, params())
        [exact] = llm.generate(PROMPT, params(exact_match=True))
    assert kept.ledger.saved["lenient"].tokens > 0
    assert "lenient" not in exact.ledger.saved


def test_what_cannot_be_is_refused(drafting: LLM) -> None:
    for threshold in (0.0, 1.5):
        with pytest.raises(InvalidRequest, match=r"above 0 and at most 1"):
            lenient(threshold)
        with pytest.raises(ConfigError, match=r"above 0 and at most 1"):
            LLM("lab", verifier=f"lenient:threshold={threshold}")
    for given in ({"bad_words": ["x"]}, {"min_tokens": 4}, {"allowed_token_ids": [5]}):
        with pytest.raises(InvalidRequest, match=r"leave one of the two out"):
            drafting.generate(PROMPT, lenient(0.1, **given))
