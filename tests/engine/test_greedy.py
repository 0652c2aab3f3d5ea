"""The engine's greedy tokens are transformers', for every architecture and every schedule.

transformers reads what the engine wrote in one forward pass: at each place the engine's token must
be the oracle's likeliest, up to the first place where the oracle's two likeliest are so close that
fp32 summed in another order may swap them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from tests.helpers.architectures import CASES
from tests.helpers.oracle import Case, oracle_logits
from tests.helpers.serving import make_engine

TOKENS = 64


@pytest.fixture(scope="module", params=CASES)
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    case = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    oracle = case.build()
    oracle.save_pretrained(directory)
    return case, directory, oracle


def engine_of(case: Case, directory: Path, **settings: Any) -> Engine:
    values = {"dtype": "float32", "max_num_seqs": 16, "block_size": 4}
    return make_engine(directory, **{**values, "max_model_len": case.max_model_len, **settings})


def generate(engine: Engine, prompts: list[list[int]], n: int = 1) -> list[list[list[int]]]:
    """prompt -> choice -> tokens, every prompt at once."""
    params = SamplingParams(n=n, temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.add(Request(request_id=str(i), prompt_token_ids=prompt, params=params))
    out: list[list[list[int]]] = [[[] for _ in range(n)] for _ in prompts]
    while engine.has_work:
        for delta in engine.step():
            out[int(delta.request_id)][delta.index] += delta.token_ids
    engine.check_integrity()
    assert engine.stats().pages_used == 0
    return out


def check(oracle: Any, case: Case, prompts: list[list[int]], out: list[list[list[int]]]) -> None:
    compared = 0
    for prompt, choices in zip(prompts, out, strict=True):
        for tokens in choices:
            assert len(tokens) == min(TOKENS, case.max_model_len - len(prompt))
            logits = oracle_logits(oracle, [prompt + tokens[:-1]])[0][len(prompt) - 1 :]
            second, first = np.sort(logits, axis=1)[:, -2:].T
            close = np.flatnonzero(first - second < 1e-4 * np.ptp(logits))
            clear = int(close[0]) if len(close) else len(tokens)
            assert tokens[:clear] == logits.argmax(axis=1)[:clear].tolist()
            compared += clear
    assert compared > 0.5 * sum(len(tokens) for choices in out for tokens in choices)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_greedy_tokens_are_those_of_transformers(checked: Any, chunk: int) -> None:
    case, directory, oracle = checked
    engine = engine_of(case, directory, max_num_batched_tokens=chunk)
    check(oracle, case, case.prompts(), generate(engine, case.prompts()))


def test_preempted_and_forked_sequences_agree_too(checked: Any) -> None:
    case, directory, oracle = checked
    cell_bytes = sum(g.cell_bytes for g in engine_of(case, directory).model.layouts)
    engine = engine_of(
        case,
        directory,
        max_num_batched_tokens=16,
        kv_cache_memory_bytes=(case.max_model_len + 4) * cell_bytes,
    )
    out = generate(engine, case.prompts(), n=3)
    check(oracle, case, case.prompts(), out)
    assert all(a == b == c for a, b, c in out)
    if all(layout.window is None for layout in engine.model.layouts):
        assert engine.scheduler.preemptions > 0
