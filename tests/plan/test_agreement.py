"""What runs and simulations are compared by."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from ockham.cli.main import cli
from ockham.core.config import EngineConfig
from ockham.core.errors import ConfigError
from ockham.kernels.native import core
from ockham.plan.agreement import Agreement, pairs_in_order, rank_correlation, varied


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]),
        ([1.0, 1.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]),
        ([5.0, 2.0, 2.0], [1.0, 7.0, 7.0]),
    ],
)
def test_rank_correlation_is_spearmans(one: list[float], other: list[float]) -> None:
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_pairs_that_are_close_are_not_counted() -> None:
    measured = [1.0, 1.02, 2.0]
    assert pairs_in_order(measured, [1.0, 0.9, 3.0]) == (2, 2)
    assert pairs_in_order(measured, [1.0, 3.5, 3.0]) == (1, 2)
    assert pairs_in_order(measured, [1.0, 1.0, 1.0]) == (0, 2)


def test_what_has_no_order_has_no_rank_correlation() -> None:
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_settings_are_read_as_text() -> None:
    config = varied(EngineConfig(), {"max_num_seqs": "2", "speculative_config": "none"})
    assert (config.max_num_seqs, config.speculative_config) == (2, "none")
    with pytest.raises(ConfigError, match="no setting 'seats'"):
        varied(EngineConfig(), {"seats": "2"})
    with pytest.raises(ConfigError, match="max_num_seqs=two"):
        varied(EngineConfig(), {"max_num_seqs": "two"})


def test_errors_are_above_zero_where_too_much_was_predicted() -> None:
    one = Agreement(
        workload="chat",
        variant="",
        rate=1.0,
        measured={"tokens_per_s": 100.0, "ttft_p50": 0.0},
        predicted={"tokens_per_s": 110.0, "ttft_p50": 0.1},
        simulated_per_real_s=10.0,
    )
    assert one.errors == {"tokens_per_s": pytest.approx(0.1)}


def test_wrong_settings_are_refused_before_anything_runs() -> None:
    done = CliRunner().invoke(cli, ["bench", "simulation", "lab", "--variant", "none"])
    assert done.exit_code == 2
    assert "'none' is no setting; write name=value." in done.output
    done = CliRunner().invoke(cli, ["bench", "simulation", "lab", "--workloads", "chess"])
    assert done.exit_code == 2
    assert "there is no workload 'chess'" in done.output
    args = ["bench", "simulation", "lab", "--processor-time", "--threads", "2"]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 2
    assert "give --threads 1" in done.output


@pytest.mark.skipif(core is None, reason="the probes are those of the native core")
def test_workloads_are_run_and_simulated() -> None:
    args = ["bench", "simulation", "lab", "--threads", "1", "--processor-time", "--json"]
    args += ["--workloads", "edit", "--variant", "speculative_config=none"]
    args += ["--variant", "speculative_config=none max_num_seqs=1"]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [one["workload"] for one in report["runs"]] == ["edit", "edit"]
    for one in report["runs"]:
        assert (
            set(one["measured"])
            == set(one["predicted"])
            == {
                "tokens_per_s",
                "ttft_p50",
                "ttft_p95",
            }
        )
        # Whatever else runs here: of the right order.
        assert 0.2 < one["predicted"]["tokens_per_s"] / one["measured"]["tokens_per_s"] < 5.0
    assert -1.0 <= report["rank_correlation"]["edit"] <= 1.0
    assert report["median_error"] >= 0.0
