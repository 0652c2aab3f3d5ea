"""Completions that end once the model is not sure enough of them."""

from __future__ import annotations

from typing import Any

import pytest

from ockham import LLM, SamplingParams
from ockham.core.errors import InvalidRequest
from ockham.core.outputs import RequestOutput
from ockham.search.give_up import learned

PROMPT = "import os\n\ndef walk(path):\n    for name in os."


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("lab", reuse="none")


def params(ask: Any, **fields: Any) -> SamplingParams:
    values = {"temperature": 1.0, "seed": 4, "max_tokens": 40, "ignore_eos": True, **fields}
    return SamplingParams(give_up=ask, **values)


def report(output: RequestOutput) -> dict[str, Any]:
    found = output.outputs[0].report
    assert found is not None
    told: dict[str, Any] = found["give_up"]
    return told


def test_a_completion_ends_where_its_mean_falls_below_the_threshold(llm: LLM) -> None:
    [whole] = llm.generate(PROMPT, params({"watch": True}, logprobs=0))
    [choice] = whole.outputs
    assert choice.logprobs is not None
    each = [e[t].logprob for t, e in zip(choice.token_ids, choice.logprobs, strict=True)]
    means = [sum(each[:n]) / n for n in range(2, len(each) + 1)]
    assert report(whole)["lowest"] == [pytest.approx(min(means), abs=1e-3)]
    assert report(whole)["given_up"] == [False]
    threshold = sorted(means)[len(means) // 2]
    end = 2 + next(n for n, mean in enumerate(means) if mean < threshold)
    [ended] = llm.generate(PROMPT, params({"threshold": threshold}))
    assert ended.outputs[0].token_ids == choice.token_ids[:end]
    assert report(ended)["given_up"] == [True]
    assert report(ended)["tokens_spared_at_most"] == 40 - end
    assert ended.ledger.generated_tokens == end


def test_drafts_and_other_requests_change_nothing(llm: LLM) -> None:
    asked = params({"threshold": -1.5}, n=3)
    [alone] = llm.generate(PROMPT, asked)
    with LLM("lab", speculative_config={"method": "skip", "adaptive": False}) as drafting:
        beside = drafting.generate([PROMPT, "def f(", PROMPT], [asked, params(True), asked])
    for other in (beside[0], beside[2]):
        assert [c.token_ids for c in other.outputs] == [c.token_ids for c in alone.outputs]
        assert report(other) == report(alone)


def test_a_threshold_is_learned_from_what_was_accepted() -> None:
    examples = [(-0.1 * n, True) for n in range(1, 21)] + [(-5.0, False)]
    assert learned(examples, 0.0) == pytest.approx(-2.0)
    assert learned(examples, 0.05) == pytest.approx(-1.9)
    assert learned(examples, 0.5) == pytest.approx(-1.0)


def test_examples_take_the_place_of_a_threshold(llm: LLM) -> None:
    [all_kept] = llm.generate(PROMPT, params({"examples": [[-900.0, True]]}))
    [none_kept] = llm.generate(PROMPT, params({"examples": [[0.0, True]]}))
    assert report(all_kept)["given_up"] == [False]
    assert report(none_kept)["given_up"] == [True]
    assert report(none_kept)["tokens"] == [2]


def test_what_cannot_be_is_refused() -> None:
    for ask, said in (
        ({"threshold": 1.0}, r"from -1000 to 0"),
        ({"after": 0}, r"from 1 to 1024"),
        ({"lose": 1.0}, r"below 1"),
        ({"examples": [[-1.0, False]]}, r"no example was accepted"),
        ({"examples": [[1.0, True]]}, r"0 at most"),
        ({"threshold": -1.0, "watch": True}, r"exclude each other"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            params(ask)
    with pytest.raises(InvalidRequest, match=r"n of at most 64"):
        params(True, n=100)
