"""Vectors and scores have the bits that they would have alone, whatever runs beside them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ockham.core.pooling import PoolingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.engine.texts import GREEDY
from ockham.kernels.native import core
from tests.exact.machine import EXAMPLES
from tests.helpers import isas
from tests.helpers.encoders import CLASSIFIERS, ENCODERS
from tests.helpers.oracle import VOCABULARY
from tests.helpers.serving import ask, make_engine

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

LONGEST = 90
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
"""Multiples of the groups of int4."""
CASES = {
    **{name: ENCODERS[name] for name in ("bert", "modernbert", "embedding-gemma", "qwen3")},
    **{f"{name} classifier": CLASSIFIERS[name] for name in ("bert", "roberta", "modernbert-mean")},
}
MODELS = {n: replace(case, values={**case.values, **SIZES}) for n, case in CASES.items()}
FORMATS = ("fp32", "bf16", "int8", "int4:32")
Asked = tuple[list[int], PoolingParams, int | None]
"""Token ids, what is made of them, and where the second text of a pair begins."""


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("pooled")
    MODELS[request.param].save(directory)
    return directory


def engine_for(checkpoint: Path, **values: Any) -> Engine:
    return make_engine(
        checkpoint, **{"task": "auto", "max_model_len": LONGEST, "backend": "cpu", **values}
    )


def pooled(engine: Engine, asked: list[Asked], rng: Random | None = None) -> list[bytes]:
    """What is answered to requests that come at once, each a sequence; or some steps apart, and
    most of them are not, where texts are computed whole. Nothing is left."""
    answers: dict[str, bytes] = {}
    waiting = list(enumerate(asked))
    while waiting or engine.has_work:
        while waiting and (rng is None or rng.random() < 0.6):
            number, (tokens, params, second) = waiting.pop(0)
            made = ask(str(number), tokens)
            engine.add(
                Request(
                    request_id=made.request_id,
                    prompt_token_ids=tokens,
                    params=GREEDY if rng is not None and rng.random() < 0.7 else made.params,
                    detokenize=False,
                    pooling=params,
                    second_text_at=second,
                )
            )
        for delta in engine.step() if engine.has_work else []:
            assert delta.finish_reason == "stop"
            answers[delta.request_id] = delta.pooled
        engine.check_integrity()
    assert engine.stats().pages_used == 0
    return [answers[str(number)] for number in range(len(asked))]


def drawn(rng: Random, tasks: tuple[str, ...]) -> Asked:
    """A random request, which sometimes begins like others, or is a pair."""
    length = rng.choice([1, 2, 3, rng.randint(1, LONGEST), rng.randint(1, LONGEST)])
    begin = Random(rng.randint(0, 1)).choices(range(3, VOCABULARY), k=length)
    shared = rng.choice([0, 0, length // 2])
    tokens = begin[:shared] + rng.choices(range(3, VOCABULARY), k=length - shared)
    second = rng.randint(1, length - 1) if length > 1 and rng.random() < 0.4 else None
    task: Any = rng.choice(tasks)
    dimensions = rng.choice([None, 7]) if task in ("embed", "token_embed") else None
    return tokens, PoolingParams(task=task, dimensions=dimensions), second


@pytest.mark.parametrize(
    ("format_name", "isa"), [*product(FORMATS, isas.NAMES), ("bf16", "amx"), ("int8", "amx")]
)
def test_company_changes_no_bit(checkpoint, format_name, isa, monkeypatch):
    isas.use(isa, monkeypatch)
    alone = engine_for(checkpoint, quantization=format_name, reuse="none", threads=1, block_size=16)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32))
    def run(seed: int) -> None:
        rng = Random(seed)
        engine = engine_for(
            checkpoint,
            quantization=format_name,
            threads=rng.choice([1, 2, 3]),
            max_num_batched_tokens=rng.choice([1, 5, 33, 100, 400]),
            max_num_seqs=rng.choice([1, 3, 32]),
            block_size=rng.choice([4, 16, 64]),
        )
        asked = [drawn(rng, engine.tasks) for _ in range(rng.randint(2, 14))]
        expected = [pooled(alone, [each])[0] for each in asked]
        assert pooled(engine, asked, rng) == expected

    run()
