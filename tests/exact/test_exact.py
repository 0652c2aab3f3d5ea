"""Every sequence has the bits that it would have alone (`make exact` for many more of them)."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ockham.core.config import EngineConfig
from ockham.engine.engine import Engine
from ockham.kernels.base import Executor
from ockham.kernels.cpu import CpuBackend
from ockham.kernels.native import core
from tests.exact.machine import FEWEST, ExactnessMachine
from tests.helpers.tiny import tiny_llama, tiny_mistral, tiny_mixtral

pytestmark = pytest.mark.skipif(core is None, reason="the native core was not built")

VOCABULARY = 97
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
CHECKPOINTS = {
    "full": lambda directory: tiny_llama(directory, **SIZES),
    "window": lambda directory: tiny_mistral(directory, window=20, **SIZES),
    "experts": lambda directory: tiny_mixtral(directory, **{**SIZES, "intermediate_size": 128}),
}
FORMATS = ("fp32", "bf16", "int8", "int4:32", "int4:64", "int4:128")
EXAMPLES = int(os.environ.get("OCKHAM_EXACT_EXAMPLES", "2"))
SHARES = {"avx512": 1.0, "avx2": 0.5, "portable": 0.3}
"""Of the examples: what is slow gets fewer. Not all machines have all instruction sets."""


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


@pytest.fixture(params=SHARES)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backends that are made in this test run this instruction set."""
    if request.param not in {core.isa_name(isa) for isa in core.Isa if core.supported(isa)}:
        pytest.skip(f"this processor lacks {request.param}")
    monkeypatch.setenv("OCKHAM_ISA", request.param)
    return str(request.param)


def executor_of(engine: Engine, threads: int) -> Executor:
    """The engine's program over its state with so many threads."""
    return CpuBackend(threads).bind(engine.model.program, engine.state.planes)


@pytest.mark.parametrize("quantization", FORMATS)
def test_no_schedule_changes_a_bit(checkpoint: Path, quantization: str, isa: str) -> None:
    # Room for less than two of the longest sequences, so that pages run out by themselves too.
    crowded = make_engine(
        checkpoint,
        quantization=quantization,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes=300 * 2 * 2 * 2 * 32 * (4 if quantization == "fp32" else 2),
    )
    alone = make_engine(checkpoint, quantization=quantization)
    alone.executor = executor_of(alone, 1)

    class Machine(ExactnessMachine):
        vocabulary = VOCABULARY
        executors = [executor_of(crowded, threads) for threads in (1, 2)]

        @classmethod
        def crowded(cls) -> Engine:
            return crowded

        @classmethod
        def alone(cls) -> Engine:
            return alone

    examples = max(2, math.ceil(EXAMPLES * SHARES[isa]))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Machine.compared + Machine.cut >= FEWEST * examples
    assert Machine.compared >= examples
    print(
        f"{Machine.compared} sequences compared, {Machine.preempted} preemptions, "
        f"{Machine.cut} requests cancelled"
    )


def test_instruction_sets_promise_no_equal_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits are promised within one numerics id, and the instruction set is part of it."""
    checkpoint = tiny_llama(tmp_path)
    names = set()
    supported = [isa for isa in core.Isa if core.supported(isa)]
    for isa in supported:
        monkeypatch.setenv("OCKHAM_ISA", core.isa_name(isa))
        names.add(make_engine(checkpoint, quantization="bf16").model.numerics_id)
    assert len(names) == len(supported)
