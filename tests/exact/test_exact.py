"""Every sequence has the bits that it would have alone (`make exact` for many more of them)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from tests.exact.machine import ExactnessMachine
from tests.helpers.tiny import tiny_llama, tiny_mistral

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

VOCABULARY = 97
CHECKPOINTS = {
    "full": lambda directory: tiny_llama(
        directory, hidden_size=128, intermediate_size=256, head_dim=32
    ),
    "window": lambda directory: tiny_mistral(
        directory, window=20, hidden_size=128, intermediate_size=256, head_dim=32
    ),
}
EXAMPLES = int(os.environ.get("OCKHAM_EXACT_EXAMPLES", "6"))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CHECKPOINTS[request.param](tmp_path_factory.mktemp(request.param))


def make_engine(checkpoint: Path, **values: object) -> Engine:
    config = {
        "model": str(checkpoint),
        "backend": "cpu",
        "skip_tokenizer_init": True,
        "max_model_len": 200,
        "block_size": 8,
        "max_num_seqs": 8,
        "kv_cache_dtype": "float32" if values["quantization"] == "fp32" else "bfloat16",
        **values,
    }
    return Engine(EngineConfig(**config))


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8", "int4"])
def test_no_schedule_changes_a_bit(checkpoint: Path, quantization: str) -> None:
    # Room for less than two of the longest sequences, so that pages run out by themselves too.
    crowded = make_engine(
        checkpoint,
        quantization=quantization,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=300 * 2 * 2 * 2 * 32 * (4 if quantization == "fp32" else 2),
    )
    alone = make_engine(checkpoint, quantization=quantization)

    class Machine(ExactnessMachine):
        vocabulary = VOCABULARY

        @classmethod
        def crowded(cls) -> Engine:
            return crowded

        @classmethod
        def alone(cls) -> Engine:
            return alone

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Machine.compared >= EXAMPLES // 2
    print(f"{Machine.compared} sequences compared")
