"""What an answer costs, said before it is written, and what it then took."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham.core.cost import StepCost
from ockham.core.price import (
    PICOJOULES_PER_BYTE,
    PICOJOULES_PER_FLOP,
    Work,
    cost_of_work,
    joules_of,
)
from tests.helpers.serving import ask, make_engine, serve
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("prompt", "tokens", "branches"), [(40, 20, 1), (33, 9, 3), (1, 2, 2)])
@pytest.mark.parametrize("chunk", [512, 16])
def test_the_price_is_the_bill(
    checkpoint: Path, prompt: int, tokens: int, branches: int, chunk: int
) -> None:
    settings = {"reuse": "none", "speculative_config": "none", "max_num_batched_tokens": chunk}
    engine = make_engine(checkpoint, **settings)
    wanted = ask("a", list(range(1, prompt + 1)), n=branches, max_tokens=tokens, seed=1)
    _, bill = serve(engine, [wanted])["a"]
    price = cost_of_work(engine.cost, Work(prompt, tokens, branches, chunk))
    found = StepCost(bill.flops, bill.weight_bytes, bill.state_read_bytes, bill.state_written_bytes)
    assert found == price


def test_energy_counts_operations_and_bytes() -> None:
    step = StepCost(flops=10**12, weight_bytes=10**9, state_read_bytes=10**9, state_written_bytes=0)
    assert joules_of(step) == pytest.approx(PICOJOULES_PER_FLOP + 2 * PICOJOULES_PER_BYTE / 1000)
