"""`ockham bench model` predicts, measures and compares steps of every size that fits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.kernels.native import core
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.skipif(core is None, reason="the probes are those of the native core")


def test_steps_are_predicted_from_probed_rates(tmp_path: Path) -> None:
    model = str(tiny_llama(tmp_path / "tiny"))
    small = ("--max-num-seqs", "4", "--max-model-len", "128", "--samples", "2")
    args = ("bench", "model", model, "--quantization", "int8", "--json", *small)
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    rates = report["rates"]
    assert rates["read_bytes_per_s"] > 1e8
    assert set(rates["products"]) == {"int8"}
    assert all(seconds > 0 for seconds in rates["products"]["int8"]["weight_s"])
    assert rates["step_s"] > 0
    steps = report["steps"]
    assert {1, 2, 4, 64} <= {step["rows"] for step in steps}
    for step in steps:
        assert step["measured_s"] > 0
        assert math.fsum(step["by"].values()) == pytest.approx(step["predicted_s"], rel=0.5)
        assert step["error"] > -1
        assert step["flops"] > 0
    assert report["median_error"] <= report["p90_error"] <= report["largest_error"]
    assert "left out" in done.stderr
