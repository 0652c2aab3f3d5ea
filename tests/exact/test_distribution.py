"""What is sampled with drafts has the distribution of the model: a chi-squared test over all texts
of three tokens, on top of the exactness machine, which compares single ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from ockham.core.sampling_params import SamplingParams
from ockham.engine.messages import Request
from ockham.kernels.native import core
from tests.exact.machine import EXAMPLES
from tests.helpers.foretelling import foretelling
from tests.helpers.serving import make_engine
from tests.helpers.tiny import tiny_llama

VOCABULARY, TOKENS = 6, 3
SAMPLES = 100_000 if EXAMPLES > 2 else 16_000
AT_ONCE = 64
TEMPERATURE = 8.0  # the weights are random, and some texts all but impossible at 1
PROMPT = [2, 4, 1]


@pytest.mark.skipif(core is None, reason="the native core was not built")
def test_texts_come_as_often_as_the_model_says(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path, vocab_size=VOCABULARY)
    settings = {"max_num_seqs": AT_ONCE, "speculative_config": "none"}
    engine = make_engine(checkpoint, backend="cpu", block_size=8, **settings)
    expected = {
        text: SAMPLES * probability(engine, text)
        for text in itertools.product(range(VOCABULARY), repeat=TOKENS)
    }
    engine.speculation = foretelling(VOCABULARY, most=1, right=0.0)
    counts = dict.fromkeys(expected, 0)
    for seed in range(SAMPLES // AT_ONCE):
        for text in sampled(engine, seed):
            counts[text] += 1
    assert engine.speculation.counters.accepted > SAMPLES / 20
    total = sum(counts.values())
    scale = total / SAMPLES
    statistic = sum(
        (counts[text] - scale * often) ** 2 / (scale * often) for text, often in expected.items()
    )
    assert min(expected.values()) > 5
    # The seeds are fixed, so this passes always or never; by chance it would fail once in 1,000.
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


def sampled(engine, seed: int) -> list[tuple[int, ...]]:
    params = SamplingParams(
        n=AT_ONCE, temperature=TEMPERATURE, max_tokens=TOKENS, seed=seed, ignore_eos=True
    )
    engine.take(Request(request_id="a", prompt_token_ids=PROMPT, params=params, detokenize=False))
    texts: list[list[int]] = [[] for _ in range(AT_ONCE)]
    while engine.has_work:
        for delta in engine.step():
            texts[delta.index] += delta.token_ids
    return [tuple(text) for text in texts]


def probability(engine, text: tuple[int, ...]) -> float:
    """Of a text after the prompt, from the model's logits."""
    logits: list[np.ndarray] = []
    engine.on_scored = lambda name, rows: logits.append(rows.astype(np.float64))
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    request = Request(
        request_id="p",
        prompt_token_ids=[*PROMPT, *text],
        params=params,
        detokenize=False,
        score_from=len(PROMPT),
    )
    engine.take(request)
    while engine.has_work:
        engine.step()
    engine.on_scored = None
    rows = np.concatenate(logits)[-TOKENS:] / TEMPERATURE
    shares = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(np.prod(shares[np.arange(TOKENS), list(text)]))
