"""`ockham bench serve` counts what a live server answers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ockham.cli.main import cli
from tests.helpers.live import LiveServer
from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    model = tiny_llama(directory / "tiny", tokenizer=True)
    with LiveServer(model, directory, "--kv-cache-memory-bytes", "16M") as live:
        yield live.url


def bench(url: str, *args: str, status: int = 0, random: bool = True) -> Any:
    length = ("--input-len", "9") if random else ()
    flags = (*length, "--output-len", "5", "--num-prompts", "6", "--json")
    result = CliRunner().invoke(cli, ["bench", "serve", "--base-url", url, *flags, *args])
    assert result.exit_code == status, result.output
    (run,) = json.loads(result.stdout)["runs"]
    return run


def test_every_token_is_counted(url: str) -> None:
    found = bench(url, "--max-concurrency", "2")
    assert (found["completed"], found["failed"]) == (6, 0)
    assert (found["prompt_tokens"], found["generated_tokens"]) == (54, 30)
    assert found["time_to_first_token_s"]["max"] <= found["end_to_end_s"]["max"]
    assert found["output_tokens_per_s"] == pytest.approx(30 / found["duration_s"])


def test_requests_come_at_the_rate_that_is_asked_for(url: str) -> None:
    assert bench(url, "--request-rate", "10")["duration_s"] > 0.2


def test_a_text_may_be_the_prompt(url: str) -> None:
    found = bench(url, "--prompt", "def f(", random=False)
    assert found["completed"] == 6
    assert found["prompt_tokens"] < 54


def test_refused_requests_are_counted_with_their_reason(url: str) -> None:
    found = bench(url, "--input-len", "4k", status=1)
    assert (found["completed"], found["failed"]) == (0, 6)
    assert "4000 tokens" in found["errors"][0]
    assert found["time_to_first_token_s"]["median"] is None


def test_an_unknown_model_is_a_failure(url: str) -> None:
    assert bench(url, "--model", "no-such-model", status=1)["failed"] == 6


def test_a_prompt_has_no_other_length() -> None:
    flags = ("--prompt", "x", "--input-len", "8")
    result = CliRunner().invoke(cli, ["bench", "serve", *flags])
    assert result.exit_code == 2
    assert "--prompt and --input-len 8 contradict" in result.output


def test_a_workload_at_several_rates_is_measured_and_drawn(url: str, tmp_path: Path) -> None:
    plot = tmp_path / "rates.svg"
    flags = ("--workload", "chat", "--set", "sessions=2", "--set", "turns=2", "--no-pauses")
    more = ("--set", "system_sentences=2", "--rate", "20,40", "--plot", str(plot), "--json")
    goal = ("--goodput", "ttft:60000 e2el:60000")
    result = CliRunner().invoke(
        cli, ["bench", "serve", "--base-url", url, "--output-len", "3", *flags, *more, *goal]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["workload"] == "chat"
    assert [run["request_rate"] for run in report["runs"]] == [20, 40]
    for run in report["runs"]:
        assert (run["completed"], run["failed"]) == (4, 0)
        assert run["goodput_requests_per_s"] == run["requests_per_s"]
    assert "<svg" in plot.read_text()


def test_no_request_is_within_an_impossible_target(url: str) -> None:
    found = bench(url, "--goodput", "ttft:0.0001")
    assert found["goodput_requests_per_s"] == 0
    assert found["requests_per_s"] > 0


def test_a_file_is_replayed(url: str, tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    flags = ("--set", "prompts=7", "--set", "prefix_sentences=1", "-o", str(path))
    written = CliRunner().invoke(cli, ["bench", "workload", "batch", *flags])
    assert written.exit_code == 0, written.output
    assert len(path.read_text().splitlines()) == 7
    assert bench(url, "--workload", str(path), random=False)["completed"] == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workload", "nothing"), "'nothing' is neither a workload (documents"),
        (("--workload", "chat", "--input-len", "3"), "brings its own prompts"),
        (("--workload", "chat", "--set", "turns=x"), "write NAME=COUNT"),
        (("--goodput", "ttft"), "write one of ttft, tpot, e2el"),
        (("--rate", "1,0"), "a rate must be above 0, got '1,0'"),
        (("--plot", "rates.nothing"), "its ending must be one of"),
        (("--plot", "/no/such/place/rates.svg"), "there is no directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(flags: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "serve", "--base-url", "http://127.0.0.1:9", *flags])
    assert result.exit_code == 2
    assert message in result.output


def test_workloads_are_listed_with_their_settings() -> None:
    result = CliRunner().invoke(cli, ["bench", "workload"])
    assert "documents  Questions over retrieved documents" in result.output
    assert "queries=48" in result.output
