"""Scores are the log probabilities that transformers computes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ockham import LLM, InvalidRequest

LAB = Path(__file__).parents[2] / "ockham" / "model" / "lab"
TEXTS = [
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
    "import os\n",
    "class Node:\n    def __init__(self, value, parent=None):\n        self.value = value\n",
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("lab", dtype="float32", kv_cache_memory_bytes=32 << 20, max_num_batched_tokens=32)


def oracle_logprobs(text: str) -> tuple[list[int], list[float]]:
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(LAB)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        scores = model(ids).logits[0].double().log_softmax(-1)
    return ids[0].tolist(), scores[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()


def test_perplexity_of_the_lab_model_is_that_of_transformers(llm: LLM) -> None:
    for text, score in zip(TEXTS, llm.score(TEXTS, use_tqdm=False), strict=True):
        ids, logprobs = oracle_logprobs(text)
        assert score.prompt_token_ids == ids
        assert score.logprobs == pytest.approx(logprobs, abs=1e-3)
        expected = math.exp(-sum(logprobs) / len(logprobs))
        assert score.perplexity == pytest.approx(expected, rel=1e-4)


def test_scoring_computes_only_the_tokens_that_predict_others(llm: LLM) -> None:
    ledger = llm.score(TEXTS[1])[0].ledger
    assert ledger.generated_tokens == 0
    assert ledger.rows == len(llm.get_tokenizer().encode(TEXTS[1])) - 1


@pytest.mark.parametrize("prompt", [[5], ""])
def test_a_prompt_of_which_nothing_can_be_scored_is_refused(
    llm: LLM, prompt: str | list[int]
) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt 1: it has .* give at least two"):
        llm.score([TEXTS[1], prompt])
