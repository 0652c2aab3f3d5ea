"""`ockham techniques advise` says what can pay, for this machine or another one."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from ockham import __version__
from ockham.cli.main import cli
from ockham.core.registry import SAVINGS
from tests.helpers.encoders import CLASSIFIERS

LIMITS = {"threads": 1, "read_bytes_per_s": 1e6, "fp32_flops_per_s": 1e11, "bf16_flops_per_s": 1e11}


def test_on_a_machine_that_reads_slowly_weights_bound_any_batch(tmp_path: Path) -> None:
    """A million bytes a second: reading a weight takes longer than a step of 64 multiplies it."""
    slow = tmp_path / "slow.json"
    report = {
        "ockham": __version__,
        "processor": "one",
        "memory_allowed_bytes": 8 << 30,
        "limits": [{**LIMITS, "int8_ops_per_s": 1e11}],
    }
    slow.write_text(json.dumps(report))
    args = ("techniques", "advise", "lab", "--machine", str(slow), "--threads", "1", "--json")
    result = CliRunner().invoke(cli, [*args, "--batch", "64", "--context", "128"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["load"] == {"context": 128, "batch": 64, "prompt": 1024, "output": 128}
    families = {family["saves"]: family for family in found["families"]}
    assert set(families) == set(SAVINGS)
    assert families["weight bytes"]["pays"]
    assert families["weight bytes"]["crossovers"]["read_bound_rows"] >= 64
    assert "format/int8" in families["weight bytes"]["approximate"]


def test_what_has_no_advice_is_refused_before_anything_is_probed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for more, said in (
        (["--batch", "5000"], "batch must be 1 to 4,096, got 5,000"),
        (["--machine", str(wrong)], "wrong.json describes no machine"),
    ):
        result = CliRunner().invoke(cli, ["techniques", "advise", "lab", *more])
        assert result.exit_code != 0
        assert said in result.output


def test_models_that_generate_nothing_are_refused(tmp_path: Path) -> None:
    CLASSIFIERS["bert"].save(tmp_path)
    args = ("techniques", "advise", str(tmp_path), "--skip-tokenizer-init")
    result = CliRunner().invoke(cli, args)
    assert result.exit_code != 0
    assert "makes vectors or scores of texts" in " ".join(result.output.split())
