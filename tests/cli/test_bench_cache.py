"""`ockham bench cache` builds the tree that it says and times what it says."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ockham.cli.main import cli
from ockham.kernels.native import core


def test_the_tree_is_measured() -> None:
    flags = ["--nodes", "300", "--node-tokens", "8", "--input-len", "200", "--repeats", "2"]
    result = CliRunner().invoke(cli, ["bench", "cache", *flags, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert 300 <= report["nodes"] < 310
    assert report["tokens"] > 300 * 7
    assert (report["bytes_per_token"] is None) == (core is None)
    assert report["match_and_insert_s"]["median"] > 0
