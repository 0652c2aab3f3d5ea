"""Steps are taken as they are asked for, counted once, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ockham.core.config import EngineConfig
from ockham.core.errors import InvalidRequest
from ockham.engine.engine import Engine
from ockham.kernels.native import core
from ockham.lab.steps import Shape, fits
from ockham.model.program.costs import cost_of
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the probes are those of the native core")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    model: Path = tiny_llama(tmp_path_factory.mktemp("tiny"))
    config = EngineConfig(
        model=str(model),
        skip_tokenizer_init=True,
        max_num_seqs=8,
        enable_prefix_caching=False,
        speculative_config="none",
    )
    return Engine(config)


def test_the_products_of_a_model_are_its_flops_and_bytes(engine: Engine) -> None:
    cost = cost_of(engine.model.program, engine.model.layouts)
    dense = [each for each in cost.products if not each.head]
    assert sum(2 * p.outputs * p.inputs * p.count for p in dense) == cost.linear_flops
    assert sum(p.nbytes * p.count for p in dense) == cost.dense_weight_bytes
    (head,) = (each for each in cost.products if each.head)
    assert (2 * head.outputs * head.inputs, head.nbytes) == (
        cost.head_flops,
        cost.head_weight_bytes,
    )
    assert cost.gate_values == 2 * 48


@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 40), Shape(8, 1, 100), Shape(1, 64, 0), Shape(2, 30, 77), Shape(1, 1, 0)]
)
def test_the_ledger_books_what_the_cost_model_counts(engine: Engine, shape: Shape) -> None:
    from ockham.lab.steps import _timed_step

    before = (
        engine.total.flops,
        engine.total.weight_bytes,
        engine.total.state_read_bytes,
        engine.total.state_written_bytes,
    )
    seconds, cores = _timed_step(engine, shape)
    after = (
        engine.total.flops,
        engine.total.weight_bytes,
        engine.total.state_read_bytes,
        engine.total.state_written_bytes,
    )
    cost = cost_of(engine.model.program, engine.model.layouts)
    step = cost.step(shape.parts, shape.sequences)
    booked = tuple(right - left for left, right in zip(before, after, strict=True))
    assert booked == (
        step.flops,
        step.weight_bytes,
        step.state_read_bytes,
        step.state_written_bytes,
    )
    assert seconds > 0
    assert cores > 0
    assert not engine.has_work
    engine.check_integrity()
    assert engine.stats().pages_used == 0


def test_a_step_without_room_is_refused(engine: Engine) -> None:
    from ockham.lab.steps import _timed_step

    shape = Shape(9, 1, 10)
    assert not fits(engine, shape)
    assert fits(engine, Shape(8, 1, 10))
    assert not fits(engine, Shape(1, 1, 511))
    with pytest.raises(InvalidRequest, match="9 sequences with 10 \\+ 1 tokens"):
        _timed_step(engine, shape)
