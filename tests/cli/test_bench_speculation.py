"""`ockham bench speculation` measures what is named, in one run, and refuses what there is not."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ockham.cli.main import cli

SMALL = ("lab", "--quantization", "int8", "--pairs", "2")


def test_several_configurations_are_measured_beside_each_other() -> None:
    ways = ["auto", '{"method": "trie", "num_speculative_tokens": 4}']
    args = ["bench", "speculation", *SMALL, "--streams", "chat,documents,edit,code,agents"]
    for way in ways:
        args += ["--speculative-config", way]
    done = CliRunner().invoke(cli, [*args, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    labels = ["auto", "trie num_speculative_tokens=4"]
    assert [one["method"] for one in report["streams"]] == labels * 5
    for one in report["streams"]:
        assert len(one["speeds"]) == 2
        assert one["interval"][0] <= one["speed"] <= one["interval"][1]
        assert one["tokens_per_step"] >= 1
    assert [mean["method"] for mean in report["means"]] == labels
    for mean in report["means"]:
        low, high = mean["geometric_interval"]
        assert low <= mean["geometric"] <= mean["arithmetic"]
        assert mean["geometric"] <= high


def test_unknown_texts_and_settings_are_refused_before_anything_is_loaded() -> None:
    for args, said in (
        (["--streams", "chat,poems"], "there are no streams 'poems'"),
        (["--batch-sizes", "0"], "--batch-sizes must be numbers from 1 on"),
        (["--speculative-config", "{bad"], "no valid JSON"),
    ):
        done = CliRunner().invoke(cli, ["bench", "speculation", *SMALL, *args])
        assert done.exit_code != 0
        assert said in done.stderr
        assert "loading" not in done.stderr
