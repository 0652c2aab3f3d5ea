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


def test_what_drafting_costs_is_measured_for_each_drafter() -> None:
    args = ["bench", "drafting", "--context", "3k", "--steps", "40", "--json"]
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 0, done.output
    found = {one["method"]: one for one in json.loads(done.stdout)}
    assert list(found) == ["copying", "trie", "recycling", "trigram"]
    for one in found.values():
        assert (one["context"], one["steps"]) == (3000, 40)
        assert 0 < one["propose_s"] <= one["propose_p99_s"]
        assert one["take_s"] > 0
        assert one["first_s"] > one["take_s"]
        assert one["bytes"] > 1000
    refused = CliRunner().invoke(cli, ["bench", "drafting", "--methods", "eagle9"])
    assert refused.exit_code != 0
    assert "no drafter called 'eagle9'" in refused.stderr
