"""Fidelity is the distance that torch measures, and zero between a model and itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.engine.engine import Engine
from ockham.lab.cases import Case, task_cases
from ockham.lab.comparison import Comparing, Entry
from ockham.lab.difference import Difference, difference, distance, first_difference
from ockham.lab.evaluate import Result
from ockham.lab.forced import decodes
from ockham.lab.tasks.shared import QUESTIONS
from tests.helpers.tiny import tiny_llama

WORDS = [(100 + index, 7, 300 + 3 * index, 12, 50) for index in range(6)]
CASES = [
    *(
        Case("complete", index, "all", words, 8, lambda made: 1.0)
        for index, words in enumerate(WORDS)
    ),
    *(
        Case("text", index, "all", words * 9, 0, None, True, 90)
        for index, words in enumerate(WORDS)
    ),
]


def engine(quantization: str | None = None, **settings: object) -> Engine:
    return Engine(
        EngineConfig(
            model="lab",
            quantization=quantization,
            kv_cache_memory_bytes=1 << 24,
            **settings,  # type: ignore[arg-type]
        )
    )


def compare(
    before: Engine,
    after: Engine,
    known: list[Entry] | None = None,
    positions: int = 20,
    cases: list[Case] = CASES,
) -> tuple[list[Difference], list[Entry]]:
    kept: list[Entry] = []
    with Comparing(cases, known or [], kept.append, positions=positions) as comparing:
        comparing.baseline(before)
        comparing.candidate(after)
        return comparing.differences(), kept


def test_the_distance_is_that_of_torch() -> None:
    random = np.random.default_rng(2)
    before = (random.standard_normal((40, 500)) * 4).astype(np.float32)
    after = before + random.standard_normal((40, 500)).astype(np.float32)
    agree, kl = distance(before, after)
    left, right = torch.from_numpy(before).double(), torch.from_numpy(after).double()
    expected = torch.nn.functional.kl_div(
        right.log_softmax(1), left.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    np.testing.assert_allclose(kl, expected.numpy(), rtol=1e-9)
    assert agree == int((left.argmax(1) == right.argmax(1)).sum())
    assert 0 < agree < 40


def test_first_difference_of_two_completions() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_a_model_has_no_distance_from_itself_whatever_the_batch() -> None:
    found, _ = compare(engine(), engine(max_num_seqs=2, max_num_batched_tokens=16))
    for each in found:
        assert (each.agreement, each.kl_mean, each.kl_max) == (1.0, 0.0, 0.0)
        assert each.identical in (None, 1.0)
        assert each.perplexity_ratio in (None, 1.0)
        assert each.score_difference in (None, 0.0)
    assert [each.source for each in found] == ["complete", "text", None]
    assert found[1].positions == 6 * 20
    assert found[2].positions == found[0].positions + found[1].positions


def test_int4_is_farther_from_the_exact_model_than_int8() -> None:
    baseline = engine()
    int8, _ = compare(baseline, engine("int8"))
    int4, _ = compare(baseline, engine("int4"))
    assert int8[-1].kl_mean is not None
    assert int4[-1].kl_mean is not None
    assert 0 < int8[-1].kl_mean < int4[-1].kl_mean
    assert int4[-1].kl_mean_interval is not None
    assert int4[-1].kl_mean_interval[0] <= int4[-1].kl_mean <= int4[-1].kl_mean_interval[1]
    assert int4[-1].perplexity_ratio != 1.0


def test_perplexity_is_of_all_tokens_not_only_of_those_compared() -> None:
    found, kept = compare(engine(), engine("int8"), positions=5)
    nats = {e.result.key: e.result.nats for e in kept if e.result and e.result.run == "baseline"}
    texts = [nats[case.key] or 0.0 for case in CASES if case.source == "text"]
    assert found[1].positions == 6 * 5
    assert found[1].baseline_perplexity == pytest.approx(math.exp(sum(texts) / (6 * 44)))


def test_rules_that_act_after_the_prompt_are_measured_while_decoding() -> None:
    """Read as a prompt, a completion would still see all cells, and agree with itself."""
    forgets = engine(keep="snapkv:budget=8,window=2")
    cases = [replace(case, tokens=case.tokens * 9) for case in CASES if case.max_tokens]
    cases += CASES[len(cases) :]
    (complete, texts, _), _ = compare(engine(), forgets, cases=cases)
    assert complete.kl_mean is not None
    assert complete.kl_mean > 0.001
    assert texts.kl_mean is not None
    assert texts.kl_mean > 0.001  # its last positions are decoded, too
    same, _ = compare(forgets, forgets, cases=cases)
    assert [each.kl_max for each in same] == [0.0] * 3


def test_decoding_and_reading_give_the_same_bits() -> None:
    reads, decoding = engine(), engine(keep="recent:window=2048")
    assert decodes(reads.config) == []
    assert decodes(decoding.config) == ["recent"]
    found, _ = compare(reads, decoding)
    assert [(each.agreement, each.kl_max) for each in found] == [(1.0, 0.0)] * 3


def test_all_questions_over_one_context_are_compared() -> None:
    settings = {"speculative_config": "none", "max_num_seqs": 8}
    before, after = engine(**settings), engine(keep="recent:window=64,block=32", **settings)
    tokenizer = before.tokenizer
    assert tokenizer is not None
    levels = [f"{way}, tokens=1000" for way in ("turns", "after", "requests")]
    cases = task_cases(["shared-recall"], 3, 0, levels, tokenizer, 4096).cases
    kept: list[Entry] = []
    with Comparing(cases, [], kept.append) as comparing:
        comparing.baseline(before)
        comparing.candidate(after)
        first, later, whole = comparing.differences()
    assert (first.level, later.level) == ("question 1", f"questions 2 to {QUESTIONS}")
    assert (first.completions, later.completions) == (3, 3 * (QUESTIONS - 1))
    answered = [e.result for e in kept if e.result and e.result.run == "baseline"]
    assert whole.positions == sum(len(ids) for result in answered for ids in result.token_ids)
    assert later.baseline_score is not None
    assert later.candidate_score is not None
    assert later.baseline_score > later.candidate_score
    assert later.kl_mean is not None
    assert later.kl_mean > 0.01
    assert whole.items == 3
    with Comparing(cases, kept, lambda entry: None) as again:
        again.baseline(before)
        again.candidate(after)
        assert again.differences()[2] == whole
    with Comparing(cases, [], lambda entry: None) as none:
        none.baseline(before)
        none.candidate(before)
        assert [each.kl_max for each in none.differences()] == [0.0] * 3


@pytest.mark.parametrize("kept_lines", [0, 5, 14, 27, 36])
def test_a_comparison_that_was_cut_off_goes_on_to_the_same_figures(kept_lines: int) -> None:
    before, after = engine(), engine("int8")
    whole, lines = compare(before, after)
    assert len(lines) == 3 * len(CASES)
    again, added = compare(before, after, lines[:kept_lines])
    assert again == whole
    assert len(added) == len(lines) - kept_lines


def test_models_of_other_vocabularies_cannot_be_compared(tmp_path: Path) -> None:
    other = Engine(EngineConfig(model=str(tiny_llama(tmp_path / "tiny")), skip_tokenizer_init=True))
    with pytest.raises(ConfigError, match="vocabulary of 4096 tokens and the candidate one of 97"):
        compare(engine(), other)


def result(run: str, index: int, score: float, tokens: list[int]) -> Result:
    return Result(
        run=run,
        source="steps",
        index=index,
        level="all",
        prompt_tokens=3,
        scores=[score],
        token_ids=[tokens],
    )


def test_scores_are_paired_and_divergence_is_counted_in_tokens() -> None:
    pairs = [
        (result("baseline", 0, 1.0, [1, 2, 3]), result("candidate", 0, 0.0, [1, 2, 4])),
        (result("baseline", 1, 1.0, [1, 2, 3]), result("candidate", 1, 1.0, [1, 2, 3])),
        (result("baseline", 2, 0.0, [5, 6]), result("candidate", 2, 0.0, [7, 6])),
        (result("baseline", 3, 1.0, [5]), result("candidate", 3, 1.0, [5])),
    ]
    found = difference("steps", pairs, [])
    assert (found.baseline_score, found.candidate_score) == (0.75, 0.5)
    assert found.score_difference == -0.25
    assert found.score_difference_interval is not None
    assert found.score_difference_interval[0] < -0.25 < found.score_difference_interval[1]
    assert (found.identical, found.first_divergence) == (0.5, 1.0)
