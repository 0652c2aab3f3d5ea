"""`ockham techniques measure` tells what it measures, and how far it is."""

from __future__ import annotations

from click.testing import CliRunner

from ockham.cli.main import cli


def test_measuring_tells_how_far_it_is_on_stderr() -> None:
    args = ("techniques", "measure", "grammar", "--rounds", "2", "--json")
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("measuring drafter/grammar (1 of 1): The tokens that")
    for said in ("loading lab", "round 1 of 2: without it ", "round 2 of 2: "):
        assert said in result.stderr
        assert said not in result.stdout
