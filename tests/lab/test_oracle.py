"""The search for the best path of each token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.sparing import ALL, SKIPPED, RoutingRule
from ockham.engine.engine import Engine
from ockham.lab import oracle
from ockham.lab.evidence.gates import ROUTERS
from ockham.lab.oracle import Paths, seek, summed_up, told
from ockham.model.checkpoint.gate_files import WidthRouters, write_routers
from tests.helpers.steps import Part, Stepper
from tests.helpers.tiny import tiny_llama

LAYERS, HIDDEN, NEURONS = 3, 32, 48
TEXT = np.random.default_rng(0).integers(0, 97, 40).tolist()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tmp_path_factory.mktemp("model")
    tiny_llama(directory, num_hidden_layers=LAYERS)
    return Engine(EngineConfig(model=str(directory), skip_tokenizer_init=True, dtype="bfloat16"))


def rule() -> RoutingRule:
    rng = np.random.default_rng(7)
    return RoutingRule(
        np.tile(np.array([SKIPPED, 16, ALL], np.int32), (LAYERS, 1)),
        rng.normal(size=(LAYERS, 3, HIDDEN)).astype(np.float32),
        np.zeros((LAYERS, 3), np.float32),
        0,
    )


def test_a_path_costs_what_rows_that_are_told_it_cost(engine: Engine) -> None:
    """Against the same token computed alone behind the same context."""
    paths = Paths(engine.model, rule(), 64)
    paths.read(TEXT)
    place = 20
    found = paths.tried(TEXT, place)
    assert len(found.paths) == 3**LAYERS + 2
    own = rule()
    for number in (0, 5, 13, 26):
        stepper = Stepper(engine.model)
        stepper.step([Part(0, TEXT[:place])])
        step = stepper.build([Part(0, [TEXT[place]])])
        step.sparing = paths._sparing(np.full(1, -1, np.int32))
        widths = own.widths[np.arange(LAYERS), found.paths[number]]
        step.sparing.told = np.ascontiguousarray(widths[:, None], np.int32)
        run = stepper.executor.begin(step)
        stepper.executor.run(run, 0, len(engine.model.program.ops))
        [logits] = stepper.executor.finish(run).logits.astype(np.float64)
        nats = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[TEXT[place + 1]]
        assert found.nats[number] == pytest.approx(nats, abs=1e-4)
        ran = np.where(widths == SKIPPED, 0, np.where(widths == ALL, NEURONS, widths))
        assert found.shares[number] == pytest.approx(ran.sum() / (LAYERS * NEURONS))
    assert found.kl[-1] == pytest.approx(0.0, abs=1e-9)
    assert found.shares[-1] == pytest.approx(1.0)


def test_nothing_beats_the_oracle_at_the_routers_cost(engine: Engine) -> None:
    found = seek(Paths(engine.model, rule(), 64), [TEXT, TEXT[::-1]], 8, 0)
    assert (found.tokens, found.paths, found.exhaustive) == (8, 3**LAYERS, True)
    assert found.fixed is not None
    assert found.best.share <= found.routed.share + 1e-9
    assert found.best.nats <= min(found.routed.nats, found.fixed.nats) + 1e-9
    assert found.nearest.kl <= found.routed.kl + 1e-9
    assert found.whole.kl == pytest.approx(0.0, abs=1e-9)
    assert any("8 tokens, 27 paths each: all" in line for line in told(found))


def test_of_too_many_paths_some_are_tried(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are among all, and begin with the whole model's neighbours."""
    every = seek(Paths(engine.model, rule(), 64), [TEXT], 4, 0)
    monkeypatch.setattr(oracle, "MOST_PATHS", 5)
    some = seek(Paths(engine.model, rule(), 64), [TEXT], 4, 0)
    assert not some.exhaustive
    assert some.fixed is None
    assert 2 * LAYERS <= some.paths < 3**LAYERS
    assert some.routed == every.routed
    assert some.whole == every.whole
    assert every.best.nats <= some.best.nats + 0.5


def test_the_sum_takes_the_cheapest_paths_within_the_cost() -> None:
    """Two tokens: one gains much by more neurons, the other nothing."""
    paths = np.array([[0], [1], [0], [1]], np.int32)
    shares = np.array([0.0, 1.0, 0.5, 1.0])
    gains = oracle.Tried(paths, shares, np.array([9.0, 1.0, 5.0, 1.0]), shares, paths[2])
    idle = oracle.Tried(paths, shares, np.array([2.0, 2.0, 2.0, 2.0]), shares, paths[2])
    found = summed_up([gains, idle], exhaustive=False)
    assert found.routed.share == 0.5
    assert (found.best.share, found.best.nats) == (0.5, 1.5)


def test_the_command_says_how_far_the_router_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["techniques", "oracle", str(ROUTERS), "--tokens", "1"])
    assert result.exit_code == 0, result.output
    assert "1 token, 6,561 paths each" in result.output
    assert "the router chooses as the best path" in result.output
    routers = WidthRouters(
        np.zeros((2, 2), np.int32),
        np.zeros((2, 2, 32), np.float32),
        np.zeros((2, 2), np.float32),
        {},
    )
    write_routers(tmp_path, routers)
    result = CliRunner().invoke(cli, ["techniques", "oracle", str(tmp_path)])
    assert result.exit_code != 0
    assert "train routers for it" in str(result.output) + str(result.exception)
