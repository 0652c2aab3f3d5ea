"""Scores are what the engine alone gives, whatever ran beside it and in how many parts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ockham import LLM, SamplingParams
from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.core.outputs import RequestOutput
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.cases import Case
from ockham.lab.evaluate import Result, evaluate, nats_of, summarise
from ockham.lab.running import drive

TEXTS = [
    "import os\nimport sys\n\n\ndef main():\n    return os.path.join(sys.argv[1], 'a')\n",
    "class Node:\n    def __init__(self, value):\n        self.value = value\n",
    "for index in range(10):\n    print(index)\n",
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("lab", kv_cache_memory_bytes=1 << 25, max_num_seqs=4)


@pytest.fixture(scope="module")
def cases(llm: LLM) -> list[Case]:
    tokenizer = llm.get_tokenizer()
    found = []
    for index, text in enumerate(TEXTS):
        tokens = tuple(tokenizer.encode(text))
        found.append(Case("text", index, "all", tokens, 0, None, True, len(text)))
        found.append(Case("complete", index, "all", tokens, 6, lambda made: float("\n" in made)))
    return found


def run(engine: Engine, cases: list[Case], **settings: float) -> dict[str, Result]:
    results: list[Result] = []
    evaluate(engine, cases, results.append, **settings)  # type: ignore[arg-type]
    return {result.key: result for result in results}


def test_results_are_those_of_the_llm_alone(llm: LLM, cases: list[Case]) -> None:
    found = run(llm.engine, cases)
    for case, text in zip(cases[1::2], TEXTS, strict=True):
        [alone] = llm.generate(text, SamplingParams(temperature=0.0, max_tokens=6))
        assert found[case.key].completions == [alone.outputs[0].text]
        assert found[case.key].scores == [float("\n" in alone.outputs[0].text)]
        assert found[case.key].nats is None
    for case, text in zip(cases[::2], TEXTS, strict=True):
        [scored] = llm.score(text)
        assert found[case.key].nats == -math.fsum(scored.logprobs)
        assert found[case.key].scored_tokens == len(scored.logprobs)
        assert found[case.key].completions == []


def test_two_parts_give_what_one_piece_gives(llm: LLM, cases: list[Case]) -> None:
    settings = {"temperature": 0.9, "n": 3, "seed": 11}
    whole = run(llm.engine, cases, **settings)
    parts = run(llm.engine, cases[4:], **settings) | run(llm.engine, cases[:4], **settings)
    assert parts == whole
    assert summarise(parts.values()) == summarise(whole.values())
    other = run(llm.engine, cases, **{**settings, "seed": 12})
    assert other != whole


def result(index: int, level: str = "all", **fields: object) -> Result:
    return Result(
        run="baseline",
        source="recall",
        index=index,
        level=level,
        prompt_tokens=10,
        **fields,  # type: ignore[arg-type]
    )


def test_scores_are_shares_of_items_by_level() -> None:
    results = [
        result(index, "even" if index % 2 == 0 else "odd", scores=[float(index % 4 == 0)])
        for index in range(8)
    ]
    whole, even, odd = summarise(results)
    assert (whole.level, whole.items, whole.score) == (None, 8, 0.25)
    assert (even.level, even.items, even.score) == ("even", 4, 0.5)
    assert (odd.score, odd.items) == (0.0, 4)
    assert odd.score_interval is not None
    assert odd.score_interval[1] > 0.4


def test_pass_rate_and_any_right_of_several_samples() -> None:
    (score,) = summarise([result(0, scores=[1.0, 0.0]), result(1, scores=[0.0, 0.0])])
    assert (score.score, score.any_right) == (0.25, 0.5)


def test_perplexity_is_per_token_over_all_texts_and_bits_are_per_byte() -> None:
    in_two_windows = [
        result(0, nats=2.0, scored_tokens=4, scored_bytes=8),
        result(0, nats=4.0, scored_tokens=4, scored_bytes=8, part=1),
    ]
    others = [result(index, nats=2.0, scored_tokens=2, scored_bytes=4) for index in range(1, 5)]
    (score,) = summarise([*in_two_windows, *others])
    assert score.items == 5
    assert score.perplexity == pytest.approx(math.exp(14 / 16))
    assert score.bits_per_byte == pytest.approx(14 / math.log(2) / 32)
    assert score.perplexity_interval is not None
    low, high = score.perplexity_interval
    # The first text alone has 0.75 nats a token, the others 1.
    assert math.exp(0.75) <= low < high <= math.exp(1.0)


def test_a_prompt_is_scored_from_where_it_is_asked(llm: LLM) -> None:
    tokens = llm.get_tokenizer().encode(TEXTS[0])
    params = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
    outputs: dict[str, RequestOutput] = {}
    rows: dict[str, int] = {"all": 0, "some": 0}

    def watch(request_id: str, logits: object) -> None:
        rows[request_id] += len(logits)  # type: ignore[arg-type]

    llm.engine.on_scored = watch
    drive(
        llm.engine,
        [
            Request(request_id="all", prompt_token_ids=tokens, params=params),
            Request(request_id="some", prompt_token_ids=tokens, params=params, score_from=9),
        ],
        lambda output: outputs.update({output.request_id: output}),
    )
    llm.engine.on_scored = None
    whole, some = outputs["all"].prompt_logprobs, outputs["some"].prompt_logprobs
    assert whole is not None
    assert some == [None] * 9 + whole[9:]
    assert rows == {"all": len(tokens) - 1, "some": len(tokens) - 9}
    assert nats_of(outputs["some"]) < nats_of(outputs["all"])


def test_a_place_outside_the_prompt_is_refused(llm: LLM) -> None:
    request = Request(
        request_id="r", prompt_token_ids=[5, 6], params=SamplingParams(), score_from=3
    )
    with pytest.raises(InvalidRequest, match="score_from is 3"):
        llm.engine.add(request)


def test_a_case_that_fails_leaves_no_work_behind(llm: LLM, cases: list[Case]) -> None:
    wrong = Case("wrong", 0, "all", (10**6,), 4)
    with pytest.raises(InvalidRequest, match="token id 1000000"):
        run(llm.engine, [*cases, wrong])
    assert not llm.engine.has_work
    llm.engine.check_integrity()


def test_many_more_cases_than_sequences_run_to_the_end(tmp_path: Path) -> None:
    engine = Engine(EngineConfig(model="lab", max_num_seqs=2, kv_cache_memory_bytes=1 << 23))
    cases = [Case("many", index, "all", (10 + index,), 2) for index in range(25)]
    found = run(engine, cases)
    assert len(found) == 25
    assert all(len(each.token_ids[0]) <= 2 for each in found.values())
