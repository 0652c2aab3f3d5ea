"""`ockham bench guard` simulates, serves, and says what came of it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ockham.cli.main import cli

FLAGS = ("--services", "200", "--requests", "36", "--threads", "1")


def test_delays_and_false_alarms_stand_beside_the_theory() -> None:
    result = CliRunner().invoke(cli, ["bench", "guard", *FLAGS, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for trial in report["trials"]:
        assert trial["false_alarms_at_floor"] <= trial["claimed"] + 0.06
        assert trial["delay_mean"] < 1.2 * trial["expected"]
        if trial["case"]["good"] > trial["case"]["floor"]:
            assert trial["false_alarms_good"] == 0
    first = report["trials"][0]
    assert (first["case"]["floor"], first["case"]["bad"]) == (0.97, 0.92)
    assert first["found"] > 0.85
    served = report["service"]
    short, long = served["phases"]
    assert short["agreement"] == 1.0
    assert long["agreement"] < 0.97
    assert 0 < served["switched"] <= 500
    assert served["rows"] <= served["share"] * served["traffic_rows"]
    assert served["longest_step_rows"] <= 64


def test_the_simulation_alone_is_a_table() -> None:
    flags = ["--services", "20", "--requests", "0"]
    result = CliRunner().invoke(cli, ["bench", "guard", *flags])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 8
