"""`ockham bench serve` counts what a live server answers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    return json.loads(result.stdout)


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
